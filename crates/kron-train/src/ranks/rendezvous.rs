//! [`Rendezvous`]: the first message of a world without MPI, bytes from rank 0 to all others, over TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::launcher::Launcher;
use super::waiting::Waiting;
use crate::error::{Error, Result, invalid};

/// Port of torchrun's own store where `MASTER_PORT` is not set; ours is the one after it.
const MASTER_PORT: u16 = 29500;
/// Largest number of ranks.
const MAX_RANKS: usize = 1 << 16;
/// First bytes of a rank's message to rank 0.
const GREETING: [u8; 16] = *b"kron-lora ranks\n";
/// Time between two questions to rank 0.
const RETRY: Duration = Duration::from_millis(50);
/// Longest time for one stranger's message.
const PATIENCE: Duration = Duration::from_secs(5);

/// A rank's number, the number of ranks, and where rank 0 listens.
#[derive(Debug, PartialEq)]
pub(super) struct Rendezvous {
    pub rank: usize,
    pub count: usize,
    /// Host and port of rank 0.
    pub first: (String, u16),
}

impl Rendezvous {
    /// Returns the meeting that a launcher announces, with the variables `MASTER_ADDR` and, one below our port,
    /// `MASTER_PORT`.
    ///
    /// # Errors
    /// The launcher does not say the rank, the rank is not below the number of ranks, or a variable is missing or no
    /// port.
    pub fn of(launcher: &Launcher, get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let Launcher { name, size: count, .. } = *launcher;
        if count > MAX_RANKS {
            return Err(invalid(format!(
                "{name} announces {count} ranks, but there are at most {MAX_RANKS}"
            )));
        }
        let rank = launcher.rank.filter(|rank| *rank < count).ok_or_else(|| {
            let said = launcher.rank.map_or("no number".into(), |rank| format!("number {rank}"));
            invalid(format!("this rank of {count} has {said}, but ranks are numbered from 0"))
        })?;
        let host = get("MASTER_ADDR").ok_or_else(|| {
            invalid(format!("{name} announces {count} ranks, but MASTER_ADDR, rank 0's host, is not set"))
        })?;
        let port = get("MASTER_PORT").map_or(Some(MASTER_PORT), |text| text.parse::<u16>().ok());
        let port = port.and_then(|port| port.checked_add(1)).ok_or_else(|| {
            let text = get("MASTER_PORT").unwrap_or_default();
            invalid(format!("MASTER_PORT is {text:?}, but a port below 65535 is needed"))
        })?;
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

    /// Asks rank 0 until it answers, at each of its addresses.
    fn ask<const N: usize>(&self, timeout: Duration) -> Result<[u8; N]> {
        let (host, port) = (self.first.0.as_str(), self.first.1);
        let begin = Instant::now();
        let numbers = [self.count, self.rank].map(|n| (n as u64).to_le_bytes());
        let message = [&GREETING[..], numbers.as_flattened()].concat();
        let attempt = |address: SocketAddr, left: Duration| -> std::io::Result<[u8; N]> {
            let mut stream = TcpStream::connect_timeout(&address, left.min(PATIENCE))?;
            stream.write_all(&message)?;
            stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; N];
            stream.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let mut last = None;
        loop {
            let addresses = (host, port).to_socket_addrs().map(Vec::from_iter);
            for address in addresses.inspect_err(|e| last = Some(e.to_string())).unwrap_or_default() {
                let left = timeout.saturating_sub(begin.elapsed());
                if left.is_zero() {
                    break;
                }
                match attempt(address, left) {
                    Ok(bytes) => return Ok(bytes),
                    Err(e) => last = Some(e.to_string()),
                }
            }
            let left = timeout.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(Error::Rank(format!(
                    "rank 0 at {host}, port {port}, does not answer for {} s, the time-out: {}",
                    timeout.as_secs_f64(),
                    last.unwrap_or_default()
                )));
            }
            std::thread::sleep(RETRY.min(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn place(rank: usize, count: usize, port: u16) -> Rendezvous {
        Rendezvous { rank, count, first: ("127.0.0.1".into(), port) }
    }

    fn free_port() -> u16 {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        listener.local_addr().expect("its number").port()
    }

    fn never() -> Result<[u8; 4]> {
        panic!("rank 0 alone makes the bytes");
    }

    #[test]
    fn variables_name_the_first_rank() {
        let of = |rank: Option<usize>, size: usize, set: &[(&str, &str)]| {
            let launcher =
                Launcher { name: "WORLD_SIZE", size, rank, local_size: 1, local_rank: 0, wants_nccl: true };
            let get = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            Rendezvous::of(&launcher, get).map_err(|e| e.to_string())
        };
        let named = [("MASTER_ADDR", "node0"), ("MASTER_PORT", "2950")];
        assert_eq!(
            of(Some(3), 8, &named),
            Ok(Rendezvous { rank: 3, count: 8, first: ("node0".into(), 2951) })
        );
        assert_eq!(of(Some(0), 2, &named[..1]).expect("a meeting").first, ("node0".into(), 29501));
        let port = |text| [named[0], ("MASTER_PORT", text)];
        for (refused, want) in [
            (of(Some(3), 8, &[]), "WORLD_SIZE announces 8 ranks, but MASTER_ADDR, rank 0's host, is not set"),
            (of(None, 8, &named), "this rank of 8 has no number"),
            (of(Some(2), 2, &named), "this rank of 2 has number 2"),
            (of(Some(2), 1 << 40, &named), "but there are at most 65536"),
            (of(Some(0), 2, &port("65535")), "MASTER_PORT is \"65535\""),
            (of(Some(0), 2, &port("18446744073709551615")), "MASTER_PORT is \"18446744073709551615\""),
            (of(Some(0), 2, &port("x")), "MASTER_PORT is \"x\""),
        ] {
            let message = refused.expect_err("no meeting");
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
            // The name may have addresses at which rank 0 does not listen.
            let named = Rendezvous { first: ("localhost".into(), port), ..place(2, 3, port) };
            let named = scope.spawn(move || named.share(LONG, never));
            for one in [ask(1, 3, LONG), named, first] {
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
        assert!(error.to_string().contains("does not answer for 0.1 s, the time-out: "), "{error}");
    }
}
