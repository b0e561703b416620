//! The `kron` program from outside: exit codes, what it prints and where.

mod adapters;
mod adapters_refused;
mod convert;
mod folder;
mod refuse;
mod verify;
