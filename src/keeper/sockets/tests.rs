//! Tests of [`Sockets`]: the order of its addresses, and the files of its Unix sockets.
//!
//! The sockets are real, and no child gets one of them. `tests/keeper.rs` has keepers with
//! children.

use super::*;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

#[test]
fn addresses_are_bound_in_their_order() {
    let listen = ["[::]:0", "127.0.0.1:0", "127.0.0.1:0"].map(|text| text.parse().unwrap());
    let mut sockets = Sockets::new(&listen).unwrap();
    let addresses: Vec<_> = sockets.all().iter().map(|kept| kept.address.to_string()).collect();
    assert!(addresses[0].starts_with("[::]:"), "{addresses:?}");
    let numbers = |sockets: &Sockets| -> Vec<_> {
        sockets.offer().iter().map(|offered| (offered.number, offered.is_own)).collect()
    };
    assert_eq!(numbers(&sockets), [(0, true), (1, true), (2, true)]);
    // Other programs expect a blocking socket.
    assert!(sockets.all().iter().all(|kept| !kept.socket.nonblocking().unwrap()));
    assert_eq!(sockets.names(), "::");
    let closed = sockets.close_others(&[0, 2, 9]);
    assert_eq!(closed[0].to_string(), addresses[1]);
    // A child brings a socket with a number above all others.
    let brought = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = inode(&brought).unwrap();
    let how = || Brought { is_own: false, file: None };
    sockets.bring(3, brought.into(), how()).unwrap();
    assert_eq!(numbers(&sockets), [(0, true), (2, true), (3, false)]);
    // Unlike the keeper's own sockets, only a child that asks for the address may take it.
    let brought: Vec<_> = sockets.offer().iter().map(|offered| offered.is_brought).collect();
    assert_eq!(brought, [false, false, true]);
    assert_eq!((sockets.inode(3), sockets.inode(1)), (Some(number), None));
    let (stream, _) = UnixStream::pair().unwrap();
    assert!(sockets.bring(4, stream.into(), how()).is_err());
    sockets.let_go();
    assert!(sockets.all().is_empty());
}

#[test]
fn the_file_of_a_socket_goes_with_the_keeper() {
    let path = std::env::temp_dir().join(format!("sg-keep-{}.sock", std::process::id()));
    let mut sockets = Sockets::new(&[Address::Unix(path.clone())]).unwrap();
    let offered = sockets.offer().remove(0);
    assert_eq!(offered.file.as_deref(), Some(&*path));
    // The copy stands for a child that still listens.
    let copy = sockets.all()[0].socket.try_clone().unwrap();
    sockets.let_go();
    assert!(UnixStream::connect(&path).is_ok());
    drop(copy);
    drop(sockets);
    assert!(!path.exists());
}

#[test]
fn a_socket_whose_file_was_removed_is_bound_anew() {
    let path = std::env::temp_dir().join(format!("sg-rebind-{}.sock", std::process::id()));
    let mut sockets = Sockets::new(&[Address::Unix(path.clone())]).unwrap();
    sockets.rebind_removed();
    assert_eq!(sockets.offer()[0].number, 0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    sockets.files[0].mode = 0o600;
    fs::remove_file(&path).unwrap();
    sockets.rebind_removed();
    assert_eq!(sockets.offer()[0].number, 1);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    // Another program's file is left alone.
    fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    sockets.rebind_removed();
    let offered = sockets.offer().remove(0);
    assert_eq!((offered.number, offered.is_own), (1, false));
    drop(sockets);
    assert!(path.exists());
    drop(other);
    fs::remove_file(&path).unwrap();
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(taken.local_addr().unwrap());
    let error = Sockets::new(std::slice::from_ref(&address)).err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
}
