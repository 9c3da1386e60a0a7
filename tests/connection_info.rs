//! The facts about a connection for a handler: the listener, the local address, HTTPS, and values
//! from a source or a wrapper. A client cannot forge them.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;

use common::{Answer, Client, Directory, Pipes, Running, tcp};
use futures_lite::stream;
use smol::Async;
use smol_graceful::{Address, Connection, ConnectionInfo, Listener, Peer, Request, Server};

/// A value that sources and wrappers attach.
struct Tenant(&'static str);

/// A value that only wrappers attach.
struct Protocol(&'static str);

/// Returns a handler that answers with the facts about its connection.
fn tell() -> impl Fn(Request) -> Answer + Send + Sync + 'static {
    |request| {
        Box::pin(async move {
            let connection = ConnectionInfo::of(&request);
            assert_eq!(
                connection.local_addr().map(|addr| addr.to_string()).as_deref(),
                request.local_addr()
            );
            let told = [
                connection.listener().map_or("none".into(), Address::to_string),
                request.local_addr().unwrap_or("none").to_owned(),
                connection.is_https().to_string(),
                request.url().to_string(),
                connection.get().map_or("none", |Tenant(name)| *name).to_owned(),
                connection.get().map_or("none", |Protocol(name)| *name).to_owned(),
            ];
            Ok(told.join(" ").into())
        })
    }
}

/// Asks twice on one connection, and returns the answer.
fn ask(client: &mut Client) -> String {
    let first = client.get("/").response().text();
    assert_eq!(client.get("/").response().text(), first);
    first
}

#[test]
fn each_request_knows_its_listener_and_its_local_address() {
    let directory = Directory::new();
    let path = directory.join("socket");
    let unix = Listener::bind(Address::Unix(path.clone())).unwrap();
    let every = Listener::bind("0.0.0.0:0").unwrap();
    let server = Running::on(Server::new(tell()), [tcp(), every, unix]);
    let rest = "false http://test/ none none";

    let one = server.addr();
    assert_eq!(ask(&mut server.connect()), format!("{one} {one} {rest}"));
    let Address::Tcp(every) = server.addresses[1] else { panic!("{:?}", server.addresses) };
    for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)] {
        let at = SocketAddr::from((ip, every.port()));
        assert_eq!(ask(&mut Client::connect(at)), format!("{every} {at} {rest}"));
    }
    let address = &server.addresses[2];
    let mut client = Client::from(UnixStream::connect(&path).unwrap());
    assert_eq!(ask(&mut client), format!("{address} none {rest}"));
}

/// A socket for both families shows the address of an IPv4 client as IPv4.
#[test]
fn a_listener_for_both_families_knows_each_clients_address() {
    let server = Running::on(Server::new(tell()), [Listener::bind(":0").unwrap()]);
    let port = match server.addresses[0] {
        Address::Tcp(addr) => addr.port(),
        Address::Every(port) => port,
        _ => panic!("{:?}", server.addresses),
    };
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let at = SocketAddr::from((ip, port));
        let told = ask(&mut Client::connect(at));
        assert_eq!(told.split(' ').nth(1), Some(&*at.to_string()), "{told}");
    }
}

#[test]
fn a_source_says_what_it_knows() {
    let (pipes, listener) = Pipes::listener();
    let _server = Running::on(Server::new(tell()), [listener]);
    let (client, connection) = Connection::pair();
    pipes.send.try_send(Ok(connection.with(Tenant("red")).with(Tenant("blue")).https())).unwrap();
    let mut client = common::PipeClient::from(client);
    let told = Address::Other.to_string();
    assert_eq!(
        client.get("/").response().text(),
        format!("{told} none true https://test/ blue none")
    );
    // Another connection has no attached value.
    let mut other = pipes.connect();
    assert_eq!(
        other.get("/").response().text(),
        format!("{told} none false http://test/ none none")
    );
}

/// The socket of a source has a local address.
#[test]
fn the_socket_of_a_source_has_a_local_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mut client = Client::connect(at);
    let connection = Connection::from(Async::new(listener.accept().unwrap().0).unwrap());
    let source = Listener::from_stream(stream::iter([Ok(connection)]));
    let _server = Running::on(Server::new(tell()), [source]);
    let told = ask(&mut client);
    assert_eq!(told, format!("{} {at} false http://test/ none none", Address::Other));
}

/// Both the source and the wrapper may attach values. If both attach the same type, the wrapper's
/// value counts.
#[test]
fn a_wrapper_adds_to_what_the_source_says() {
    let (pipes, listener) = Pipes::listener();
    let listener = listener.wrap(|connection| async {
        Ok(Connection::new(connection).with(Tenant("blue")).with(Protocol("x/1")))
    });
    let _server = Running::on(Server::new(tell()), [listener]);
    let (client, connection) = Connection::pair();
    let connection = connection.with(Tenant("red")).https().from_peer(([192, 0, 2, 1], 9));
    assert_eq!(connection.peer(), Peer::from(([192, 0, 2, 1], 9)));
    pipes.send.try_send(Ok(connection)).unwrap();
    let mut client = common::PipeClient::from(client);
    let other = Address::Other;
    let told = client.get("/").response().text();
    assert_eq!(told, format!("{other} none true https://test/ blue x/1"));
}

/// A wrapper may give its connection back, and then the socket stays plain.
#[test]
fn what_is_attached_to_a_plain_socket_is_known() {
    let listener = tcp().wrap(|connection| async { Ok(connection.with(Tenant("blue")).https()) });
    let server = Running::on(Server::new(tell()), [listener]);
    let at = server.addr();
    let mut client = server.connect();
    assert_eq!(ask(&mut client), format!("{at} {at} true https://test/ blue none"));
    // The default port of HTTPS differs from that of HTTP, and a client may write a scheme.
    for (target, host, url) in [
        ("/a", "test:80", "https://test:80/a"),
        ("/a", "test:443", "https://test/a"),
        ("http://test/a", "test", "http://test/a"),
    ] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let told = client.response().text();
        assert_eq!(told.split(' ').nth(3), Some(url), "{told}");
    }
}
