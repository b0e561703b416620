//! [`Link`]: messages between two ranks, and long messages of several.

use std::time::Duration;

use crate::error::{Error, Result};

/// Most bytes of one message.
pub(super) const PIECE: usize = 512 << 10;

/// Messages between the ranks of a world, which arrive in the order in which a rank sends them to another.
pub(super) trait Link {
    /// Returns this rank's number, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn count(&self) -> usize;

    /// Returns the time for which one rank may be silent.
    fn own_timeout(&self) -> Duration;

    /// Returns the time for which another rank may be silent: the first one, which waits for all others, twice as long,
    /// so that it is the one to name who is missing.
    fn timeout(&self, other: usize) -> Duration {
        if other == 0 { 2 * self.own_timeout() } else { self.own_timeout() }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other rank has ended.
    fn send(&self, to: usize, message: &[u8]) -> Result<(), Lost>;

    /// Waits for the next message of a rank, and puts it into a buffer.
    ///
    /// # Errors
    /// The other rank has ended, or is silent for longer than the time-out.
    fn receive(&self, from: usize, message: &mut Vec<u8>) -> Result<(), Lost>;

    /// Ends all ranks at once, if it can.
    fn abort(&self);
}

/// Reason why no message comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lost {
    Ended,
    Silent(Duration),
}

impl Lost {
    fn of(self, rank: usize, exchange: &str) -> Error {
        Error::Rank(match self {
            Self::Ended => format!("rank {rank} ended before {exchange}"),
            Self::Silent(time) => {
                format!("rank {rank} is silent for {} s, the time-out, in {exchange}", time.as_secs_f64())
            }
        })
    }
}

/// Sends bytes of any number to a rank that receives them in the same exchange.
///
/// The receiver asks first, so that both compare their exchange, and no long message waits for one who does not come.
pub(super) fn send(link: &dyn Link, to: usize, exchange: &str, bytes: &[u8]) -> Result<()> {
    answer(link, to, exchange)?;
    let lost = |lost: Lost| lost.of(to, exchange);
    link.send(to, &(bytes.len() as u64).to_le_bytes()).map_err(lost)?;
    bytes.chunks(PIECE).try_for_each(|piece| link.send(to, piece).map_err(lost))
}

/// Receives bytes from a rank that sends them in the same exchange.
pub(super) fn receive(link: &dyn Link, from: usize, exchange: &str) -> Result<Vec<u8>> {
    ask(link, from, exchange)?;
    let (mut piece, mut bytes) = (Vec::new(), Vec::new());
    let next = |piece: &mut Vec<u8>| link.receive(from, piece).map_err(|lost| lost.of(from, exchange));
    next(&mut piece)?;
    let wrong = || Error::Rank(format!("rank {from} sent a message of another length in {exchange}"));
    // The name of an exchange is longer than a length.
    let len = piece.as_slice().try_into().map(u64::from_le_bytes);
    let len = len.map_err(|_| another(link, from, exchange, &piece))?;
    while (bytes.len() as u64) < len {
        next(&mut piece)?;
        if piece.is_empty() {
            return Err(wrong());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Tells a rank which exchange this one is in, and that it waits.
pub(super) fn ask(link: &dyn Link, from: usize, exchange: &str) -> Result<()> {
    link.send(from, exchange.as_bytes()).map_err(|lost| lost.of(from, exchange))
}

/// Waits until a rank asks, and compares its exchange with this one's.
pub(super) fn answer(link: &dyn Link, to: usize, exchange: &str) -> Result<()> {
    let mut theirs = Vec::new();
    link.receive(to, &mut theirs).map_err(|lost| lost.of(to, exchange))?;
    match theirs == exchange.as_bytes() {
        true => Ok(()),
        false => Err(another(link, to, exchange, &theirs)),
    }
}

fn another(link: &dyn Link, rank: usize, exchange: &str, theirs: &[u8]) -> Error {
    Error::Rank(format!(
        "rank {} is in {exchange}, but rank {rank} in {}: they run different programs or inputs",
        link.rank(),
        String::from_utf8_lossy(theirs)
    ))
}

/// Sends one piece of at most [`PIECE`] bytes, after [`answer`].
pub(super) fn send_piece(link: &dyn Link, to: usize, exchange: &str, piece: &[u8]) -> Result<()> {
    link.send(to, piece).map_err(|lost| lost.of(to, exchange))
}

/// Receives one piece of a known length, after [`ask`].
pub(super) fn receive_piece(
    link: &dyn Link,
    from: usize,
    exchange: &str,
    len: usize,
    piece: &mut Vec<u8>,
) -> Result<()> {
    link.receive(from, piece).map_err(|lost| lost.of(from, exchange))?;
    match piece.len() == len {
        true => Ok(()),
        false => Err(Error::Rank(format!(
            "rank {from} sent {} bytes in {exchange}, but {len} were expected",
            piece.len()
        ))),
    }
}
