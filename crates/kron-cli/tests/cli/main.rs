//! The `kron` program from outside: exit codes, what it prints and where.

mod adapters;
mod adapters_refused;
mod combine;
mod convert;
mod costly;
mod escapes;

mod fit;
mod gguf_lora;
mod golden;
mod hugging_face;
mod interrupt;
mod json;
mod lycoris;
mod merge;
mod merge_extras;
mod merge_force;
mod merge_gguf;
mod merge_refuse;
mod merge_tied;
mod merge_trained;
mod models;
mod one_writer;
mod overwriting;
mod plan;
mod ranges;
mod refuse;
mod speed;
mod stopped;
mod text;
mod threads;
mod trained;
mod unwritable;
mod verify;
