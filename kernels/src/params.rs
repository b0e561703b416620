//! The Rust twin of `cuda/params.h`, written by bindgen: see `tests/params.rs`.
#![allow(missing_docs, clippy::undocumented_unsafe_blocks)]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct KronStacked {
    pub c: *const f32,
    pub t: *mut f32,
    pub dt_parts: *const f32,
    pub first: i32,
    pub rank: i32,
    pub dt_splits: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KronStacked"][::std::mem::size_of::<KronStacked>() - 40usize];
    ["Alignment of KronStacked"][::std::mem::align_of::<KronStacked>() - 8usize];
    ["Offset of field: KronStacked::c"][::std::mem::offset_of!(KronStacked, c) - 0usize];
    ["Offset of field: KronStacked::t"][::std::mem::offset_of!(KronStacked, t) - 8usize];
    [
        "Offset of field: KronStacked::dt_parts",
    ][::std::mem::offset_of!(KronStacked, dt_parts) - 16usize];
    [
        "Offset of field: KronStacked::first",
    ][::std::mem::offset_of!(KronStacked, first) - 24usize];
    [
        "Offset of field: KronStacked::rank",
    ][::std::mem::offset_of!(KronStacked, rank) - 28usize];
    [
        "Offset of field: KronStacked::dt_splits",
    ][::std::mem::offset_of!(KronStacked, dt_splits) - 32usize];
};
impl Default for KronStacked {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct KronParams {
    pub a: *const f32,
    pub b: *const f32,
    pub c: *const f32,
    pub x: *const ::std::os::raw::c_void,
    pub dy: *const ::std::os::raw::c_void,
    pub y: *mut ::std::os::raw::c_void,
    pub dx: *mut ::std::os::raw::c_void,
    pub w: *mut ::std::os::raw::c_void,
    pub x_stride: i64,
    pub dy_stride: i64,
    pub y_stride: i64,
    pub dx_stride: i64,
    pub w_stride: i64,
    pub t: *mut f32,
    pub t_parts: *mut f32,
    pub v: *mut f32,
    pub dt_parts: *mut f32,
    pub da_parts: *mut f32,
    pub db_parts: *mut f32,
    pub dc_parts: *mut f32,
    pub grad: *mut f32,
    pub rows: i64,
    pub first_row: i64,
    pub w_rows: i64,
    pub a_out: i32,
    pub a_in: i32,
    pub b_out: i32,
    pub c_in: i32,
    pub rank: i32,
    pub accumulate: i32,
    pub scale: f32,
    pub keep_scale: f32,
    pub seed: u64,
    pub offset: u64,
    pub key: *const u64,
    pub threshold: u32,
    pub t_splits: i32,
    pub t_slice: i32,
    pub dt_splits: i32,
    pub da_splits: i32,
    pub db_splits: i32,
    pub dc_splits: i32,
    pub col_tiles: i32,
    pub cols: i32,
    pub row_chunks: i32,
    pub tiles: i32,
    pub chunk_rows: i64,
    pub a_row_groups: i32,
    pub rows_per_group: i32,
    pub table: *const i32,
    pub status: *mut u32,
    pub scales: *const f32,
    pub order: *mut i32,
    pub segments: *mut i32,
    pub u: *mut f32,
    pub slot_stride: i64,
    pub slots: i32,
    pub tile_rows: i32,
    pub dc_stride: i64,
    pub stack: *mut f32,
    pub stacked: [KronStacked; 8usize],
    pub t_longer: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KronParams"][::std::mem::size_of::<KronParams>() - 720usize];
    ["Alignment of KronParams"][::std::mem::align_of::<KronParams>() - 8usize];
    ["Offset of field: KronParams::a"][::std::mem::offset_of!(KronParams, a) - 0usize];
    ["Offset of field: KronParams::b"][::std::mem::offset_of!(KronParams, b) - 8usize];
    ["Offset of field: KronParams::c"][::std::mem::offset_of!(KronParams, c) - 16usize];
    ["Offset of field: KronParams::x"][::std::mem::offset_of!(KronParams, x) - 24usize];
    [
        "Offset of field: KronParams::dy",
    ][::std::mem::offset_of!(KronParams, dy) - 32usize];
    ["Offset of field: KronParams::y"][::std::mem::offset_of!(KronParams, y) - 40usize];
    [
        "Offset of field: KronParams::dx",
    ][::std::mem::offset_of!(KronParams, dx) - 48usize];
    ["Offset of field: KronParams::w"][::std::mem::offset_of!(KronParams, w) - 56usize];
    [
        "Offset of field: KronParams::x_stride",
    ][::std::mem::offset_of!(KronParams, x_stride) - 64usize];
    [
        "Offset of field: KronParams::dy_stride",
    ][::std::mem::offset_of!(KronParams, dy_stride) - 72usize];
    [
        "Offset of field: KronParams::y_stride",
    ][::std::mem::offset_of!(KronParams, y_stride) - 80usize];
    [
        "Offset of field: KronParams::dx_stride",
    ][::std::mem::offset_of!(KronParams, dx_stride) - 88usize];
    [
        "Offset of field: KronParams::w_stride",
    ][::std::mem::offset_of!(KronParams, w_stride) - 96usize];
    ["Offset of field: KronParams::t"][::std::mem::offset_of!(KronParams, t) - 104usize];
    [
        "Offset of field: KronParams::t_parts",
    ][::std::mem::offset_of!(KronParams, t_parts) - 112usize];
    ["Offset of field: KronParams::v"][::std::mem::offset_of!(KronParams, v) - 120usize];
    [
        "Offset of field: KronParams::dt_parts",
    ][::std::mem::offset_of!(KronParams, dt_parts) - 128usize];
    [
        "Offset of field: KronParams::da_parts",
    ][::std::mem::offset_of!(KronParams, da_parts) - 136usize];
    [
        "Offset of field: KronParams::db_parts",
    ][::std::mem::offset_of!(KronParams, db_parts) - 144usize];
    [
        "Offset of field: KronParams::dc_parts",
    ][::std::mem::offset_of!(KronParams, dc_parts) - 152usize];
    [
        "Offset of field: KronParams::grad",
    ][::std::mem::offset_of!(KronParams, grad) - 160usize];
    [
        "Offset of field: KronParams::rows",
    ][::std::mem::offset_of!(KronParams, rows) - 168usize];
    [
        "Offset of field: KronParams::first_row",
    ][::std::mem::offset_of!(KronParams, first_row) - 176usize];
    [
        "Offset of field: KronParams::w_rows",
    ][::std::mem::offset_of!(KronParams, w_rows) - 184usize];
    [
        "Offset of field: KronParams::a_out",
    ][::std::mem::offset_of!(KronParams, a_out) - 192usize];
    [
        "Offset of field: KronParams::a_in",
    ][::std::mem::offset_of!(KronParams, a_in) - 196usize];
    [
        "Offset of field: KronParams::b_out",
    ][::std::mem::offset_of!(KronParams, b_out) - 200usize];
    [
        "Offset of field: KronParams::c_in",
    ][::std::mem::offset_of!(KronParams, c_in) - 204usize];
    [
        "Offset of field: KronParams::rank",
    ][::std::mem::offset_of!(KronParams, rank) - 208usize];
    [
        "Offset of field: KronParams::accumulate",
    ][::std::mem::offset_of!(KronParams, accumulate) - 212usize];
    [
        "Offset of field: KronParams::scale",
    ][::std::mem::offset_of!(KronParams, scale) - 216usize];
    [
        "Offset of field: KronParams::keep_scale",
    ][::std::mem::offset_of!(KronParams, keep_scale) - 220usize];
    [
        "Offset of field: KronParams::seed",
    ][::std::mem::offset_of!(KronParams, seed) - 224usize];
    [
        "Offset of field: KronParams::offset",
    ][::std::mem::offset_of!(KronParams, offset) - 232usize];
    [
        "Offset of field: KronParams::key",
    ][::std::mem::offset_of!(KronParams, key) - 240usize];
    [
        "Offset of field: KronParams::threshold",
    ][::std::mem::offset_of!(KronParams, threshold) - 248usize];
    [
        "Offset of field: KronParams::t_splits",
    ][::std::mem::offset_of!(KronParams, t_splits) - 252usize];
    [
        "Offset of field: KronParams::t_slice",
    ][::std::mem::offset_of!(KronParams, t_slice) - 256usize];
    [
        "Offset of field: KronParams::dt_splits",
    ][::std::mem::offset_of!(KronParams, dt_splits) - 260usize];
    [
        "Offset of field: KronParams::da_splits",
    ][::std::mem::offset_of!(KronParams, da_splits) - 264usize];
    [
        "Offset of field: KronParams::db_splits",
    ][::std::mem::offset_of!(KronParams, db_splits) - 268usize];
    [
        "Offset of field: KronParams::dc_splits",
    ][::std::mem::offset_of!(KronParams, dc_splits) - 272usize];
    [
        "Offset of field: KronParams::col_tiles",
    ][::std::mem::offset_of!(KronParams, col_tiles) - 276usize];
    [
        "Offset of field: KronParams::cols",
    ][::std::mem::offset_of!(KronParams, cols) - 280usize];
    [
        "Offset of field: KronParams::row_chunks",
    ][::std::mem::offset_of!(KronParams, row_chunks) - 284usize];
    [
        "Offset of field: KronParams::tiles",
    ][::std::mem::offset_of!(KronParams, tiles) - 288usize];
    [
        "Offset of field: KronParams::chunk_rows",
    ][::std::mem::offset_of!(KronParams, chunk_rows) - 296usize];
    [
        "Offset of field: KronParams::a_row_groups",
    ][::std::mem::offset_of!(KronParams, a_row_groups) - 304usize];
    [
        "Offset of field: KronParams::rows_per_group",
    ][::std::mem::offset_of!(KronParams, rows_per_group) - 308usize];
    [
        "Offset of field: KronParams::table",
    ][::std::mem::offset_of!(KronParams, table) - 312usize];
    [
        "Offset of field: KronParams::status",
    ][::std::mem::offset_of!(KronParams, status) - 320usize];
    [
        "Offset of field: KronParams::scales",
    ][::std::mem::offset_of!(KronParams, scales) - 328usize];
    [
        "Offset of field: KronParams::order",
    ][::std::mem::offset_of!(KronParams, order) - 336usize];
    [
        "Offset of field: KronParams::segments",
    ][::std::mem::offset_of!(KronParams, segments) - 344usize];
    ["Offset of field: KronParams::u"][::std::mem::offset_of!(KronParams, u) - 352usize];
    [
        "Offset of field: KronParams::slot_stride",
    ][::std::mem::offset_of!(KronParams, slot_stride) - 360usize];
    [
        "Offset of field: KronParams::slots",
    ][::std::mem::offset_of!(KronParams, slots) - 368usize];
    [
        "Offset of field: KronParams::tile_rows",
    ][::std::mem::offset_of!(KronParams, tile_rows) - 372usize];
    [
        "Offset of field: KronParams::dc_stride",
    ][::std::mem::offset_of!(KronParams, dc_stride) - 376usize];
    [
        "Offset of field: KronParams::stack",
    ][::std::mem::offset_of!(KronParams, stack) - 384usize];
    [
        "Offset of field: KronParams::stacked",
    ][::std::mem::offset_of!(KronParams, stacked) - 392usize];
    [
        "Offset of field: KronParams::t_longer",
    ][::std::mem::offset_of!(KronParams, t_longer) - 712usize];
};
impl Default for KronParams {
    fn default() -> Self {
        let mut s = ::std::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::std::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
