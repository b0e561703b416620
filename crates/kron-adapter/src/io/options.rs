//! Choices of a writer.

/// Treatment of an output that exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IfExists {
    /// Replace it in one step.
    Replace,
    /// Leave it and fail.
    Refuse,
}

/// Time at which the bytes of a file reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// Before the writer returns: a file that has its name survives a power cut.
    Now,
    /// Whenever the system chooses, as after `cp`. A power cut within the next half
    /// minute may leave a truncated file under its name, and a late error of a
    /// network disk may go unnoticed.
    Later,
}
