//! The `kron` program from outside: exit codes, what it prints and where.

mod folder;
mod refuse;
mod verify;
