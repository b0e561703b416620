//! The `kron` program from outside: exit codes, what it prints and where.

mod adapters;
mod adapters_refused;
mod apart;
mod convert;
mod folder;
mod interrupt;
mod json;
mod lycoris;
mod merge;
mod merge_force;
mod merge_refuse;
mod plan;
mod refuse;
mod room;
mod speed;
mod stopped;
mod text;
mod toy;
mod verify;
