//! Tests of the ways to a listener: what is bound, which options a socket has, and which socket
//! file is replaced, removed or left alone.
//!
//! The sockets are real. No server runs here.

use super::*;
use futures_lite::future::block_on;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use socket2::SockRef;

use crate::stream::transport::{Peer, Transport};

#[test]
fn every_interface_means_both_families() {
    let listener = ":0".listen().unwrap();
    let Address::Tcp(addr) = listener.address() else { panic!("{listener:?}") };
    TcpStream::connect((Ipv4Addr::LOCALHOST, addr.port())).unwrap();
}

#[test]
fn an_address_in_use_is_named() {
    let first = "127.0.0.1:0".listen().unwrap();
    let error = first.address().listen().unwrap_err().to_string();
    let addr = first.address();
    let line = "this program listens on it already; leave one of the two out";
    assert_eq!(error, format!("cannot listen on {addr}: {line}"));
}

/// A connection inherits the options of its listening socket.
#[test]
fn connections_are_probed_when_they_are_silent() {
    let minute = Duration::from_secs(60);
    let options = ListenOptions::default();
    let address = "127.0.0.1:0";
    let own = || TcpListener::bind("127.0.0.1:0").unwrap();
    for (listener, silence) in [
        (Listener::bind(address), Some(minute)),
        (own().listen(), Some(minute)),
        (options.adopt(own()), Some(minute)),
        (options.keepalive(2 * minute).bind(address), Some(2 * minute)),
        // The server rounds up, because 0 s would be an error.
        (options.keepalive(minute / 100).bind(address), Some(minute / 60)),
        (options.keepalive(Duration::MAX).bind(address), Some(Duration::from_secs(32_767))),
        (options.keepalive(None).bind(address), None),
        (options.keepalive(Duration::ZERO).bind(address), None),
        (options.keepalive(None).adopt(own()), None),
    ] {
        let listener = listener.unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let _client = TcpStream::connect(addr).unwrap();
        let mut accepted = None;
        assert!(block_on(listener.accept(|connection| accepted = Some(connection.transport))));
        let Some(Transport::Plain(socket)) = &accepted else { panic!("not a plain socket") };
        let socket = SockRef::from(socket);
        assert_eq!(socket.keepalive().unwrap(), silence.is_some());
        if let Some(silence) = silence {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), silence);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
        }
    }
}

/// A connection would inherit this option, and its close would block the worker.
#[test]
fn no_close_of_a_connection_waits_for_its_client() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    SockRef::from(&socket).set_linger(Some(Duration::from_secs(30))).unwrap();
    let listener = socket.listen().unwrap();
    let Address::Tcp(addr) = *listener.address() else { unreachable!() };
    let _client = TcpStream::connect(addr).unwrap();
    let mut accepted = None;
    assert!(block_on(listener.accept(|connection| accepted = Some(connection.transport))));
    let Some(Transport::Plain(socket)) = &accepted else { panic!("not a plain socket") };
    assert_eq!(SockRef::from(socket).linger().unwrap(), None);
}

#[test]
fn a_stale_socket_file_is_replaced_and_ours_removed() {
    let path = temporary("stale");
    drop(UnixListener::bind(&path).unwrap());
    let listener = Address::Unix(path.clone()).listen().unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    let mut taken = 0;
    block_on(listener.close(|accepted| taken += usize::from(accepted.peer == Peer::Unix)));
    assert_eq!(taken, 1);
    assert!(!path.exists());
}

#[test]
fn a_live_socket_file_is_not_stolen() {
    let path = temporary("live");
    let first = Address::Unix(path.clone()).listen().unwrap();
    let error = Address::Unix(path.clone()).listen().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    UnixStream::connect(&path).unwrap();
    drop(first);
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let path = temporary("file");
    std::fs::write(&path, "precious").unwrap();
    let error = Address::Unix(path.clone()).listen().unwrap_err();
    assert!(error.to_string().contains(": the file exists and is not a socket; "), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_successors_socket_file_is_left_alone() {
    let path = temporary("successor");
    let first = Address::Unix(path.clone()).listen().unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Address::Unix(path.clone()).listen().unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
    drop(second);
}

fn temporary(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sg-{}-{name}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}
