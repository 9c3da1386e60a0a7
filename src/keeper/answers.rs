//! [`Url`]: asks a URL, and makes sure that the new process answers, and no other.
//!
//! Invariant: an answer of the old process, which has the same listening socket, does not count.
//! The kernel's tables tell which process has the other end of a connection. Every read and every
//! wait is bounded. This file does not decide what an answer means.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::Duration;

use async_io::{Async, Timer};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use rustix::process::Pid;

use crate::error::{invalid, reason};

/// The longest time of one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause between two tries.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The pause between two looks at the kernel's tables.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// The number of looks before half a head is sent.
const MOST_LOOKS: u32 = 10;

/// The largest number of bytes that the keeper reads of an answer.
const LONGEST: usize = 256;

/// A URL on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    to: SocketAddr,
    /// The host and the port, as the operator has written them.
    host: String,
    target: String,
}

impl FromStr for Url {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let wrong = |why: &str| invalid(format!("`{text}` cannot be asked: {why}"));
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(wrong("write an address such as `http://127.0.0.1:8082/readyz`"));
        };
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(wrong("it contains white space"));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, target) = rest.split_at(end);
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.into() } else { format!("/{target}") };
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                let port = port.parse().map_err(|_| wrong("a port is a number up to 65535"))?;
                (name, port)
            }
            _ => (host, 80),
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let ip = match (name, bare) {
            (_, Some(bare)) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            (name, None) if name.eq_ignore_ascii_case("localhost") => {
                Some(IpAddr::V4(Ipv4Addr::LOCALHOST))
            }
            (name, None) => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        };
        let ip = ip.ok_or_else(|| {
            wrong("names are not looked up, apart from localhost; write an IP address")
        })?;
        if port == 0 {
            return Err(wrong("no client can connect to port 0"));
        }
        Ok(Self { to: SocketAddr::new(ip, port), host: host.to_owned(), target })
    }
}

impl Url {
    /// Asks until the process `child`, or another process of its group, has answered with 2xx or
    /// 3xx. The future stays pending until then. Calls `note` with the reason why a try has failed.
    pub(crate) async fn answered(&self, child: Pid, mut note: impl FnMut(String)) {
        loop {
            let late = async {
                Timer::after(TRY_TIMEOUT).await;
                Err(format!("no answer within {TRY_TIMEOUT:?}"))
            };
            match self.ask(child).or(late).await {
                Ok(()) => return,
                Err(why) => note(why),
            }
            Timer::after(RETRY_PAUSE).await;
        }
    }

    /// Asks once. Returns the reason as an error if there was no good answer.
    async fn ask(&self, child: Pid) -> Result<(), String> {
        let said = |error: io::Error| reason(&error);
        let mut stream = Async::<TcpStream>::connect(self.to).await.map_err(said)?;
        let Self { host, target, .. } = self;
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: smol-graceful-keep\r\n\
             Connection: close\r\n\r\n"
        );
        // The keeper looks for the process before it asks, because the server may close the
        // connection right after its answer.
        let (socket, unsent) = self.until_taken(&mut stream, &head).await.map_err(said)?;
        match holds(child, socket) {
            Found::Yes => {}
            Found::No => return Err("another process has answered".into()),
            Found::Unknown => {
                return Err("this user may not see which process has answered".into());
            }
        }
        stream.write_all(unsent.as_bytes()).await.map_err(said)?;
        let mut bytes = [0; LONGEST];
        let mut length = 0;
        while length < LONGEST && !bytes[..length].contains(&b'\n') {
            match stream.read(&mut bytes[length..]).await.map_err(said)? {
                0 => break,
                n => length += n,
            }
        }
        verdict(&bytes[..length])
    }

    /// Waits until a process has taken the connection. Returns the inode of that process's socket,
    /// and the part of `head` that was not sent.
    ///
    /// With TCP_DEFER_ACCEPT, the kernel gives the server a connection only when there is something
    /// to read. So if no process has taken the connection after a while, the keeper sends half of
    /// `head`.
    async fn until_taken<'a>(
        &self,
        stream: &mut Async<TcpStream>,
        head: &'a str,
    ) -> io::Result<(u64, &'a str)> {
        let own = stream.get_ref().local_addr()?;
        let (half, rest) = head.split_at(head.len() / 2);
        let mut looks = 0..MOST_LOOKS;
        let mut unsent = head;
        loop {
            if let Some(socket) = socket_between(self.to, own)? {
                return Ok((socket, unsent));
            }
            Timer::after(LOOK_PAUSE).await;
            if looks.next() == Some(MOST_LOOKS - 1) {
                stream.write_all(half.as_bytes()).await?;
                unsent = rest;
            }
        }
    }
}

/// Judges the first line of an answer. Returns the reason as an error if the answer is not good.
fn verdict(bytes: &[u8]) -> Result<(), String> {
    let line = String::from_utf8_lossy(bytes);
    let line = line.lines().next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    match status.and_then(|status| status.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("the answer was {status}")),
        None if line.is_empty() => Err("the connection was closed without an answer".into()),
        None => Err("the answer was not HTTP".into()),
    }
}

/// Returns the inode of the socket at the other end of a connection, once a process has taken it.
fn socket_between(server: SocketAddr, client: SocketAddr) -> io::Result<Option<u64>> {
    // The table of IPv6 has the IPv4 clients of a socket for both families.
    for table in ["/proc/net/tcp6", "/proc/net/tcp"] {
        let Ok(file) = File::open(table) else { continue };
        // The keeper reads line by line, because the table of a busy server is long.
        for line in BufReader::new(file).lines().skip(1) {
            if let Some((local, remote, inode)) = entry(&line?) {
                if (local, remote) == (server, client) && inode != 0 {
                    return Ok(Some(inode));
                }
            }
        }
    }
    Ok(None)
}

/// Reads a line of the kernel's tables: both addresses, and the inode.
fn entry(line: &str) -> Option<(SocketAddr, SocketAddr, u64)> {
    let mut fields = line.split_whitespace();
    let (local, remote) = (address(fields.nth(1)?)?, address(fields.next()?)?);
    Some((local, remote, fields.nth(6)?.parse().ok()?))
}

/// Reads an address of the kernel's tables. The address has words of 32 bits, each in the machine's
/// own byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (digits, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(digits.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match digits.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The answer to whether a process of a group has a socket.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Yes,
    No,
    /// This user may not see the descriptors of a process of the group.
    Unknown,
}

/// Looks for a socket in the process `child` and the other processes of its group.
fn holds(child: Pid, socket: u64) -> Found {
    let wanted = format!("socket:[{socket}]");
    let group = child.as_raw_nonzero().get();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found = Found::No;
    for process in processes.filter(|process| group_of(*process) == Some(group)) {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else {
            found = Found::Unknown;
            continue;
        };
        let mut links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        if links.any(|link| link.as_os_str() == wanted.as_str()) {
            return Found::Yes;
        }
    }
    found
}

/// Returns the process group of a process.
fn group_of(process: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may contain `)`, so the fields begin after the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use rustix::process::getpgrp;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    #[test]
    fn a_url_is_read() {
        for (text, to, host, target) in [
            ("http://127.0.0.1:8082/readyz", "127.0.0.1:8082", "127.0.0.1:8082", "/readyz"),
            ("http://localhost", "127.0.0.1:80", "localhost", "/"),
            ("http://[::1]:1/a?b#c", "[::1]:1", "[::1]:1", "/a?b"),
            ("http://[::1]?b", "[::1]:80", "[::1]", "/?b"),
        ] {
            let url: Url = text.parse().unwrap();
            let (host, target) = (host.to_owned(), target.to_owned());
            assert_eq!(url, Url { to: to.parse().unwrap(), host, target });
        }
        for (text, why) in [
            ("https://127.0.0.1/", "write an address such as `http://127.0.0.1:8082/readyz`"),
            ("http://", "it names no host"),
            ("http:///readyz", "it names no host"),
            ("http://example.org/", "names are not looked up, apart from localhost"),
            ("http://127.0.0.1:x/", "a port is a number up to 65535"),
            ("http://127.0.0.1:0/", "no client can connect to port 0"),
            ("http://127.0.0.1/a b", "it contains white space"),
            ("http://user@127.0.0.1/", "names are not looked up"),
        ] {
            let error = text.parse::<Url>().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let line = format!("`{text}` cannot be asked: {why}");
            assert!(error.to_string().starts_with(&line), "{error}");
        }
    }

    #[test]
    fn an_answer_is_good_or_not() {
        for (answer, verdict_of) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Ok(())),
            ("HTTP/1.0 302 Found\r\n", Ok(())),
            ("HTTP/1.1 503 Service Unavailable\r\n", Err("the answer was 503")),
            ("HTTP/1.1 xyz\r\n", Err("the answer was not HTTP")),
            ("SSH-2.0-OpenSSH\r\n", Err("the answer was not HTTP")),
            ("", Err("the connection was closed without an answer")),
        ] {
            assert_eq!(verdict(answer.as_bytes()), verdict_of.map_err(str::to_owned), "{answer}");
        }
    }

    #[test]
    fn the_kernels_tables_are_read() {
        let line = "   0: 0100007F:1F92 0100007F:D431 01 00000000:00000000 00:00000000 00000000  \
                    1000        0 12345 1 0000000000000000 20 4 30 10 -1";
        let expected = |server: &str, client: &str, inode| {
            Some((server.parse().unwrap(), client.parse().unwrap(), inode))
        };
        if cfg!(target_endian = "little") {
            assert_eq!(entry(line), expected("127.0.0.1:8082", "127.0.0.1:54321", 12345));
            let mapped = "0000000000000000FFFF00000100007F:1F92";
            assert_eq!(address(mapped), Some("127.0.0.1:8082".parse().unwrap()));
        }
        for garbage in ["", "0: x y", "0: 0100007F:1F92 0100007F", "0: 01é0007F:1 01:2"] {
            assert_eq!(entry(garbage), None);
        }
    }

    #[test]
    fn the_owner_of_an_accepted_connection_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let client = TcpStream::connect(addr).unwrap();
        // No process has accepted the connection.
        assert_eq!(socket_between(addr, client.local_addr().unwrap()).unwrap(), None);
        let (_server, _) = listener.accept().unwrap();
        let socket = socket_between(addr, client.local_addr().unwrap()).unwrap().unwrap();
        assert_eq!(holds(getpgrp(), socket), Found::Yes);
        assert_eq!(holds(getpgrp(), 1), Found::No);
        // The number is too high for a process group.
        assert_eq!(holds(Pid::from_raw(i32::MAX).unwrap(), socket), Found::No);
    }

    /// Runs a server for one connection, and asks the server as if `child` were the new process.
    fn asked(child: Pid) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            let mut bytes = [0; 512];
            while !head.ends_with(b"\r\n\r\n") {
                match client.read(&mut bytes).unwrap_or(0) {
                    0 => return,
                    n => head.extend(&bytes[..n]),
                }
            }
            assert!(head.starts_with(b"GET /readyz HTTP/1.1\r\n"));
            client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        });
        let url: Url = format!("http://{addr}/readyz").parse().unwrap();
        let answer = block_on(url.ask(child));
        server.join().unwrap();
        answer
    }

    #[test]
    fn only_the_new_process_counts() {
        assert_eq!(asked(getpgrp()), Ok(()));
        let other = Pid::from_raw(i32::MAX).unwrap();
        assert_eq!(asked(other), Err("another process has answered".into()));
    }
}
