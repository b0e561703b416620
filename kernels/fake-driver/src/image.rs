//! The kernels of a fatbin: those of its machine code for the device's architecture.

use std::collections::BTreeSet;
use std::io::Read;

use cudarc::driver::sys::CUresult;
use object::{Object, ObjectSymbol, SymbolKind};

use crate::Done;

/// The architecture of the device: sm_90, an H200's.
pub const ARCHITECTURE: u32 = 90;

/// First four bytes of a fatbin, and of a Zstandard frame.
const FATBIN: u32 = 0xba55_ed50;
const ZSTANDARD: u32 = 0xfd2f_b528;
/// Kind of an entry with machine code.
const MACHINE_CODE: u16 = 2;
/// Bytes of a fatbin's header up to the length of what follows it.
pub const HEADER: usize = 16;

/// Returns the bytes of the whole fatbin that begins with `header`.
pub fn length(header: &[u8; HEADER]) -> Done<usize> {
    let number = |at, bytes| number(header, at, bytes);
    match (number(0, 4)?, number(6, 2)?, number(8, 8)?) {
        (magic, start, length) if magic == u64::from(FATBIN) => Ok((start + length) as usize),
        _ => Err(CUresult::CUDA_ERROR_INVALID_IMAGE),
    }
}

/// Returns the names of the kernels that a whole fatbin has for the device.
pub fn kernels(fatbin: &[u8]) -> Done<BTreeSet<String>> {
    let (mut at, mut names) = (number(fatbin, 6, 2)? as usize, None);
    while at < fatbin.len() {
        let entry = fatbin.get(at..).ok_or(CUresult::CUDA_ERROR_INVALID_IMAGE)?;
        // Header's bytes, payload's bytes; the compressed bytes are the payload without its padding.
        let (header, payload) = (number(entry, 4, 4)? as usize, number(entry, 8, 8)? as usize);
        if number(entry, 0, 2)? == u64::from(MACHINE_CODE) && number(entry, 28, 4)? == u64::from(ARCHITECTURE)
        {
            let compressed = number(entry, 16, 4)? as usize;
            let length = if compressed > 0 { compressed } else { payload };
            let code = entry.get(header..header + length).ok_or(CUresult::CUDA_ERROR_INVALID_IMAGE)?;
            names.get_or_insert_with(BTreeSet::new).append(&mut functions(code)?);
        }
        at += header + payload;
    }
    names.ok_or(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)
}

/// Returns the names of an ELF file's functions.
fn functions(code: &[u8]) -> Done<BTreeSet<String>> {
    let invalid = CUresult::CUDA_ERROR_INVALID_IMAGE;
    let mut unpacked = Vec::new();
    let elf = if number(code, 0, 4)? == u64::from(ZSTANDARD) {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(code).map_err(|_| invalid)?;
        decoder.read_to_end(&mut unpacked).map_err(|_| invalid)?;
        &unpacked
    } else {
        code
    };
    let file = object::File::parse(elf).map_err(|_| invalid)?;
    let functions = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global());
    Ok(functions.filter_map(|symbol| symbol.name().ok().map(str::to_owned)).collect())
}

/// Reads a number of the file's, lowest byte first.
fn number(bytes: &[u8], at: usize, count: usize) -> Done<u64> {
    let bytes = bytes.get(at..at + count).ok_or(CUresult::CUDA_ERROR_INVALID_IMAGE)?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}
