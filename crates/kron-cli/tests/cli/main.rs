//! The `kron` program from outside: exit codes, what it prints and where.

mod adapters;
mod adapters_refused;
mod folder;
mod refuse;
mod verify;
