//! Stand-ins by which a test plays the keeper or a child.
//!
//! [`FakeKeeper`] starts the real binary and speaks its parent channel. [`FakeChild`] is a child of
//! a real keeper whose process only waits. The test has the child's end of the channel, and can
//! send any message. Linux only.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Signal, kill_process};
use smol_graceful::Address;

use super::handover::{Handover, SocketKind, copy_of};
use super::messages::{Channel, KEEPER, Ready, keeper_word, offer, ready};
use super::{Client, Directory, ProcessId, Program, SERVER, wait_until};

/// A keeper that the test plays. The keeper's child runs the real binary.
pub struct FakeKeeper {
    pub child: Program,
    /// The keeper's end of the parent channel.
    pub channel: Channel,
    /// The first READY of the child.
    pub ready: Ready,
    /// The keeper's copy of the listening socket.
    pub listener: Option<OwnedFd>,
    pub address: Address,
    pub directory: Directory,
}

impl FakeKeeper {
    /// Starts a child with one listener, whose number is 0, and waits until the child is ready.
    pub fn start(over: SocketKind) -> Self {
        Self::start_with(over, |_| {}, &[offer(&[0])])
    }

    /// Starts a child to which the keeper has sent these words. `configure` completes its command.
    pub fn start_with(
        over: SocketKind,
        configure: impl FnOnce(&mut Command),
        words: &[Vec<u8>],
    ) -> Self {
        let (child, channel, listener, address, directory) = spawn(over, configure, words);
        let (ready, brought) = channel.ready();
        assert_eq!(brought.len(), 0);
        Self { child, channel, ready, listener: Some(listener), address, directory }
    }

    pub fn connect(&self) -> Client {
        Client::connect_to(&self.address)
    }

    /// Sends PASS with the end of a passage.
    pub fn pass(&self, end: &OwnedFd) {
        self.channel.send(super::messages::PASS, &[end.as_fd()]);
    }

    /// Stops the child, which drains.
    pub fn end(&mut self) {
        self.child.stop();
    }
}

/// Starts the real binary as the child of a keeper that the test plays, without waiting for READY.
/// Also returns the keeper's end of the channel, its copy of the listener, and the address.
pub fn spawn(
    over: SocketKind,
    configure: impl FnOnce(&mut Command),
    words: &[Vec<u8>],
) -> (Program, Channel, OwnedFd, Address, Directory) {
    let directory = Directory::new();
    let (listener, address): (OwnedFd, _) = match over {
        SocketKind::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = Address::Tcp(listener.local_addr().unwrap());
            (listener.into(), address)
        }
        SocketKind::Unix => {
            let listener = UnixListener::bind(directory.join("socket")).unwrap();
            (listener.into(), directory.socket("socket"))
        }
    };
    let (channel, end) = Channel::pair();
    for word in words {
        channel.send(word, &[]);
    }
    // The shell becomes the server, so its process id is the server's.
    let mut command = Command::new("sh");
    command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"; exit $?", "sh", SERVER]);
    command.env("LISTEN_FDS", "1").env(KEEPER, keeper_word(&end, 4));
    configure(&mut command);
    let fds = [(listener.try_clone().unwrap(), 3), (end, 4)];
    let fds = fds.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(fds.into()).unwrap();
    (Program::start(command), channel, listener, address, directory)
}

/// A child of a real keeper, played by the test.
pub struct FakeChild {
    /// The process that the keeper has started.
    pub process: ProcessId,
    /// The child's end of the parent channel. The process has no copy of it.
    pub channel: Channel,
    /// The number and the file of each socket that the keeper has offered, and whether a keeper has
    /// bound it.
    pub offered: Vec<(u32, bool, String)>,
    /// The abstract name of the keeper's datagram socket for this child.
    pub notify: String,
}

/// A command for [`FakeChild`]. The shell waits until the test has the end of the channel, and
/// closes its own copy, descriptor 4 (descriptor 3 is the listening socket).
pub const WAITS_FOR_THE_TEST: &str = "kill -STOP $$; exec 4<&-; exec sleep 60";

impl FakeChild {
    /// Restarts a server with one listener. The test is the successor.
    pub fn successor_of(server: &mut Handover) -> Self {
        server.successors_run(WAITS_FOR_THE_TEST);
        server.servers.signal(Signal::USR2);
        let process = server.servers.wait_for_start();
        let child = Self::of(process);
        server.successors_run("");
        child
    }

    /// Takes the place of a child that runs [`WAITS_FOR_THE_TEST`].
    pub fn of(process: ProcessId) -> Self {
        wait_until("the child is suspended", || process.is_suspended());
        let variables = fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
        let value = |name: &str| {
            let value = variables.split('\0').find_map(|variable| variable.strip_prefix(name));
            value.unwrap_or_else(|| panic!("no {name} in {variables:?}")).to_owned()
        };
        let word = value("SMOL_GRACEFUL_KEEPER=");
        let end = copy_of(process, 4).expect("the child has no channel");
        assert_eq!(word, keeper_word(&end, 4));
        process.signal(Signal::CONT);
        wait_until("the shell has closed its copy", || {
            !Path::new(&format!("/proc/{process}/fd/4")).exists()
        });
        let channel = Channel::of(end);
        let offered = channel.offer();
        Self { process, channel, offered, notify: value("NOTIFY_SOCKET=") }
    }

    /// Reports that the child serves on these listeners, and takes their connections.
    pub fn say_ready(&self, listeners: &[u32]) {
        self.channel.send(&ready(listeners), &[]);
    }

    /// Sends a datagram of systemd's protocol to the keeper, as this test's process.
    pub fn notify(&self, words: &str) {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;

        let name = self.notify.strip_prefix('@').expect("no abstract name");
        let address = SocketAddr::from_abstract_name(name).unwrap();
        UnixDatagram::unbound().unwrap().send_to_addr(words.as_bytes(), &address).unwrap();
    }

    /// Closes the channel. The process goes on.
    pub fn close(&mut self) {
        self.channel = Channel::pair().0;
    }
}

impl Drop for FakeChild {
    fn drop(&mut self) {
        let _ = kill_process(self.process.0, Signal::KILL);
    }
}
