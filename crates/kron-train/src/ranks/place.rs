//! [`Place`]: a rank's place as torchrun or Slurm announces it, and the first message of its world: bytes from
//! rank 0 to all others, over TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::waiting::Waiting;
use crate::error::{Error, Result, invalid};

/// Port of torchrun's own store where `MASTER_PORT` is not set; ours is the one after it.
const MASTER_PORT: u16 = 29500;
/// First bytes of a rank's message to rank 0.
const GREETING: [u8; 16] = *b"kron-lora ranks\n";
/// Longest time for one stranger's message.
const PATIENCE: Duration = Duration::from_secs(5);

/// A rank's number, the number of ranks, and where rank 0 listens.
#[derive(Debug, PartialEq)]
pub(super) struct Place {
    pub rank: usize,
    pub count: usize,
    /// Host and port of rank 0.
    pub first: (String, u16),
}

impl Place {
    /// Returns the place that the variables announce: `RANK` and `WORLD_SIZE`, or `SLURM_PROCID` and
    /// `SLURM_STEP_NUM_TASKS`, with `MASTER_ADDR` and, one below our port, `MASTER_PORT`.
    ///
    /// # Errors
    /// One of them is missing or is no number, or the rank is not below the number of ranks.
    pub fn announced(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = get(name) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| invalid(format!("{name} is {text:?}, but takes a number")))
        };
        let (rank, count) = match (number("RANK")?, number("WORLD_SIZE")?) {
            (Some(rank), Some(count)) => (rank, count),
            _ => match (number("SLURM_PROCID")?, number("SLURM_STEP_NUM_TASKS")?) {
                (Some(rank), Some(count)) => (rank, count),
                _ => {
                    return Err(invalid(
                        "NCCL needs RANK and WORLD_SIZE, or SLURM_PROCID and SLURM_STEP_NUM_TASKS",
                    ));
                }
            },
        };
        if rank >= count {
            return Err(invalid(format!("this is rank {rank} of {count}, but ranks are numbered from 0")));
        }
        let host = get("MASTER_ADDR").ok_or_else(|| {
            invalid(format!("{count} ranks are announced, but MASTER_ADDR, rank 0's host, is not set"))
        })?;
        let port = number("MASTER_PORT")?.unwrap_or(MASTER_PORT.into()) + 1;
        let port = u16::try_from(port)
            .map_err(|_| invalid(format!("MASTER_PORT is {}, but the port after it is used", port - 1)))?;
        Ok(Self { rank, count, first: (host, port) })
    }

    /// Returns rank 0's bytes, which `own` makes there.
    ///
    /// # Errors
    /// `own` fails, a rank does not come within `timeout`, or rank 0 has another number of ranks.
    pub fn share<const N: usize>(
        &self,
        timeout: Duration,
        own: impl FnOnce() -> Result<[u8; N]>,
    ) -> Result<[u8; N]> {
        if self.rank > 0 {
            return self.ask(timeout);
        }
        let port = self.first.1;
        let listener = TcpListener::bind(("0.0.0.0", port))
            .map_err(|e| Error::Rank(format!("rank 0 cannot listen on port {port}: {e}")))?;
        let bytes = own()?;
        self.give(&listener, timeout, &bytes)?;
        Ok(bytes)
    }

    /// Gives every other rank the bytes, once all have come.
    fn give(&self, listener: &TcpListener, timeout: Duration, bytes: &[u8]) -> Result<()> {
        let lost = |e: std::io::Error| Error::Rank(format!("rank 0 cannot hear the others: {e}"));
        listener.set_nonblocking(true).map_err(lost)?;
        let mut others: Vec<Option<TcpStream>> = (1..self.count).map(|_| None).collect();
        let mut waiting = Waiting::new(timeout);
        while let Some(missing) = others.iter().position(Option::is_none) {
            match listener.accept() {
                Ok((stream, _)) => {
                    // Whoever does not greet as a rank of this world is no rank of it.
                    if let Some(rank) = self.greeted(&stream)
                        && let Some(place @ None) = rank.checked_sub(1).and_then(|i| others.get_mut(i))
                    {
                        *place = Some(stream);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !waiting.goes_on() {
                        return Err(Error::Rank(format!(
                            "rank {} did not come within {} s, the time-out",
                            missing + 1,
                            timeout.as_secs_f64()
                        )));
                    }
                }
                Err(e) => return Err(lost(e)),
            }
        }
        others.iter().flatten().enumerate().try_for_each(|(i, mut stream)| {
            stream.write_all(bytes).map_err(|e| Error::Rank(format!("rank {} went away: {e}", i + 1)))
        })
    }

    /// Reads a greeting and returns its rank; `None` for a stranger's message and for one of another world.
    fn greeted(&self, mut stream: &TcpStream) -> Option<usize> {
        let mut message = [0; GREETING.len() + 16];
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.read_exact(&mut message).ok()?;
        let (greeting, numbers) = message.split_at(GREETING.len());
        let [count, rank] = numbers.as_chunks::<8>().0 else { return None };
        let fits = greeting == GREETING && u64::from_le_bytes(*count) == self.count as u64;
        usize::try_from(u64::from_le_bytes(*rank)).ok().filter(|_| fits)
    }

    /// Asks rank 0 until it answers.
    fn ask<const N: usize>(&self, timeout: Duration) -> Result<[u8; N]> {
        let (host, port) = (self.first.0.as_str(), self.first.1);
        let begin = Instant::now();
        let numbers = [self.count, self.rank].map(|n| (n as u64).to_le_bytes());
        let message = [&GREETING[..], numbers.as_flattened()].concat();
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            let attempt = || -> std::io::Result<[u8; N]> {
                let address = (host, port).to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
                let mut stream = TcpStream::connect_timeout(&address, left.min(PATIENCE))?;
                stream.write_all(&message)?;
                stream.set_read_timeout(Some(left))?;
                let mut bytes = [0; N];
                stream.read_exact(&mut bytes)?;
                Ok(bytes)
            };
            if left.is_zero() {
                return Err(Error::Rank(format!(
                    "rank 0 at {host}, port {port}, does not answer for {} s, the time-out",
                    timeout.as_secs_f64()
                )));
            }
            match attempt() {
                Ok(bytes) => return Ok(bytes),
                Err(_) => std::thread::sleep(Duration::from_millis(50).min(left)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn place(rank: usize, count: usize, port: u16) -> Place {
        Place { rank, count, first: ("127.0.0.1".into(), port) }
    }

    fn free_port() -> u16 {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        listener.local_addr().expect("its number").port()
    }

    fn never() -> Result<[u8; 4]> {
        panic!("rank 0 alone makes the bytes");
    }

    #[test]
    fn variables_announce_a_place() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
            Place::announced(|name| set.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
                .map_err(|e| e.to_string())
        };
        let torchrun =
            [("RANK", "3"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", "2950")];
        assert_eq!(of(&torchrun), Ok(Place { rank: 3, count: 8, first: ("node0".into(), 2951) }));
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("MASTER_ADDR", "a")];
        assert_eq!(of(&slurm), Ok(Place { rank: 0, count: 2, first: ("a".into(), 29501) }));
        for (set, want) in [
            (&torchrun[..2], "8 ranks are announced, but MASTER_ADDR, rank 0's host, is not set"),
            (&torchrun[1..], "NCCL needs RANK and WORLD_SIZE"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "this is rank 2 of 2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is \"x\", but takes a number"),
            (
                &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "65535")],
                "MASTER_PORT is 65535",
            ),
        ] {
            let message = of(set).expect_err("no place");
            assert!(message.contains(want), "{message}");
        }
    }

    #[test]
    fn every_rank_gets_the_bytes_of_rank_0() {
        let port = free_port();
        std::thread::scope(|scope| {
            let ask =
                |rank, count, timeout| scope.spawn(move || place(rank, count, port).share(timeout, never));
            let first = scope.spawn(move || place(0, 3, port).share(LONG, || Ok(*b"kron")));
            // One that greets otherwise, one that is cut off, one of another world, and one that does not exist.
            for stranger in [&b"GET / HTTP/1.1\r\n\r\n and what a browser sends"[..], b"short"] {
                let mut stream = loop {
                    match TcpStream::connect(("127.0.0.1", port)) {
                        Ok(stream) => break stream,
                        Err(_) => std::thread::yield_now(),
                    }
                };
                stream.write_all(stranger).expect("it is sent");
            }
            let short = Duration::from_millis(300);
            let strangers = [ask(1, 2, short), ask(3, 3, short)];
            assert!(strangers.into_iter().all(|one| one.join().expect("no panic").is_err()));
            for one in [ask(1, 3, LONG), ask(2, 3, LONG), first] {
                assert_eq!(one.join().expect("no panic").expect("all came"), *b"kron");
            }
        });
    }

    #[test]
    fn a_rank_that_does_not_come_is_named() {
        let (port, short) = (free_port(), Duration::from_millis(100));
        let error = place(0, 2, port).share(short, || Ok(*b"kron")).expect_err("nobody comes");
        assert_eq!(error.to_string(), "rank 1 did not come within 0.1 s, the time-out");
        let error = place(1, 2, port).share(short, never).expect_err("nobody listens");
        assert!(error.to_string().ends_with("does not answer for 0.1 s, the time-out"), "{error}");
    }
}
