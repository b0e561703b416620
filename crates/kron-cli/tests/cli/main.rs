//! The `kron` program from outside: exit codes, what it prints and where.

mod adapters;
mod adapters_refused;
mod convert;
mod costly;
mod escapes;

mod fit;
mod foreign_configs;
mod foreign_names;
mod foreign_parts;
mod gguf_lora;
mod golden;
mod hugging_face;
mod interrupt;
mod json;
mod lycoris;
mod merge;
mod merge_force;
mod merge_gguf;
mod merge_refuse;
mod merge_trained;
mod models;
mod one_writer;
mod overwriting;
mod plan;
mod plan_models;
mod ranges;
mod refuse;
mod speed;
mod stopped;
mod text;
mod threads;
mod trained;
mod unwritable;
mod verify;
