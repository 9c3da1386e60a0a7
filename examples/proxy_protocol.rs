//! A server behind a proxy that passes its clients' addresses on. The proxy sends one line in front
//! of each connection, which is version 1 of HAProxy's PROXY protocol. If the line is still
//! arriving at a stop, the server serves that connection, too.
//!
//! Run with:
//!
//! ```
//! cargo run --example proxy_protocol -- 127.0.0.1:8082
//! ```
//!
//! Then `curl --haproxy-protocol http://127.0.0.1:8082` prints your own address. HAProxy sends the
//! line to a server with `send-proxy`, nginx with `proxy_protocol on` in a stream. Let only the
//! proxy reach the server, because any client can send such a line.

use std::io;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use futures_lite::AsyncReadExt;
use smol_graceful::{Connection, Listener, Outcome, Peer, ServeError, Server, run};

/// The length of the longest line, with its end.
const LONGEST: usize = 107;
/// The length of the shortest line.
const SHORTEST: usize = "PROXY UNKNOWN\r\n".len();

/// Reads the line and no byte after it, because those bytes belong to the request.
async fn read_line(connection: &mut Connection) -> io::Result<String> {
    let mut line = vec![0; SHORTEST];
    connection.read_exact(&mut line).await?;
    while !line.ends_with(b"\r\n") {
        let begin = line.len();
        // At least this number of bytes is missing. To read byte by byte would cost more calls.
        let missing = if line.ends_with(b"\r") { 1 } else { 2 };
        if begin + missing > LONGEST {
            return Err(io::Error::other("the line of the PROXY protocol is too long"));
        }
        line.resize(begin + missing, 0);
        connection.read_exact(&mut line[begin..]).await?;
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).map_err(io::Error::other)
}

/// Reads the line, and returns the connection with the client's address from it. This runs in the
/// connection's own task, for which a stop waits.
async fn learn_peer(mut connection: Connection) -> io::Result<Connection> {
    let line = read_line(&mut connection).await?;
    let words: Vec<_> = line.split(' ').collect();
    let peer = match *words {
        // The proxy has opened the connection for itself, for example for a health check.
        ["PROXY", "UNKNOWN", ..] => return Ok(connection),
        ["PROXY", "TCP4", from, _, port, _] => address::<Ipv4Addr>(from, port),
        ["PROXY", "TCP6", from, _, port, _] => address::<Ipv6Addr>(from, port),
        _ => None,
    };
    let wrong = || io::Error::other(format!("not a line of the PROXY protocol: {line:?}"));
    Ok(connection.from_peer(peer.ok_or_else(wrong)?))
}

fn address<A: FromStr + Into<IpAddr>>(ip: &str, port: &str) -> Option<SocketAddr> {
    Some(SocketAddr::new(ip.parse::<A>().ok()?.into(), port.parse().ok()?))
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".into());
    let server = Server::new(|request| async move { Ok(format!("{}\n", Peer::of(&request))) });
    let listen = || Ok::<_, io::Error>(Listener::bind(&*address)?.wrap(learn_peer));
    // `run` calls `listen` after it has set up the signals.
    run(server, iter::once_with(listen))
}
