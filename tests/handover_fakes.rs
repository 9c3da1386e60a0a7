//! Hand-overs in which the test itself is the successor or the predecessor of the real binary, and
//! says what no process of this version would say.
//!
//! So it also sees what is said: which connections are in which batch, and what is answered. The
//! messages are written here once more, because two versions of a program have to agree on them.

#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use common::handover::{self, Handover, Over, over_both};
use common::{Client, End, PATIENCE, ProcessId, SERVER, wait_until};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use socket2::SockRef;

/// The most connections that go in one message.
const BATCH: usize = 253;

// The test is the successor.

/// H2 and H3: an answer that makes no sense ends the hand-over. The successor may have the batch, so
/// the predecessor does not read it.
#[test]
fn a_batch_with_a_senseless_answer_is_the_successors() {
    let senseless: [&[u8]; 5] = [&taken(2, 1), &taken(1, 2), b"nonsense", b"T", b"P"];
    over_both(|over| {
        for answer in senseless {
            let mut server = Handover::staged(over);
            let predecessor = server.serving();
            let mut client = server.idle();
            let mut busy = server.in_flight("/wait/answer");
            let successor = Successor::of(&mut server);
            let mut batch = successor.passage.batch();
            assert_eq!((batch.number, batch.sockets.len()), (1, 1));
            successor.passage.send(answer, &[]);
            server.line_of(predecessor, ": the successor's answer makes no sense");
            // When this one has ended, the predecessor has done what it does about the others.
            server.open("answer");
            assert_eq!(busy.response().text(), predecessor.to_string());
            assert_eq!(busy.end(), End::Eof);
            client.post("/echo", "hello");
            answer_as_fake(batch.sockets.remove(0));
            assert_eq!(client.response().text(), "fake");
            server.assert_handed_over(predecessor, 0);
        }
    });
}

/// H3: an answer that comes twice is no answer to the next batch, and ends the hand-over.
#[test]
fn a_second_answer_to_a_batch_ends_the_hand_over() {
    over_both(|over| {
        let mut server = Handover::staged(over);
        let predecessor = server.serving();
        let _idle = server.idle();
        let mut client = server.in_flight("/wait/answer");
        let successor = Successor::of(&mut server);
        assert_eq!(successor.passage.batch().sockets.len(), 1);
        successor.passage.send(&taken(1, 1), &[]);
        successor.passage.send(&taken(1, 1), &[]);
        server.line_of(predecessor, ": the successor's answer makes no sense");
        server.open("answer");
        assert!(client.response().says_close());
        server.assert_handed_over(predecessor, 1);
    });
}

/// H2 and H6: a passage that closes without an answer gives the batch back, whatever the successor's
/// process does. Its connections have a linger of their own, and then end as in any stop.
#[test]
fn a_passage_that_closes_without_an_answer_gives_the_batch_back() {
    over_both(|over| {
        let mut server = Handover::server(over, &["--linger", "20s"]);
        let predecessor = server.serving();
        let mut clients: Vec<_> = (0..3).map(|_| server.idle()).collect();
        let mut successor = Successor::of(&mut server);
        drop(successor.passage.batch());
        successor.close();
        server.line_of(predecessor, ": the successor has closed the passage");
        for client in &mut clients {
            let response = client.post("/echo", "hello").response();
            assert_eq!((&*response.text(), response.says_close()), ("hello", true));
            assert_eq!(client.end(), End::Eof);
        }
        server.assert_handed_over(predecessor, 0);
    });
}

/// H3 and H5: idle connections are asked a batch at a time, so the others are served until it is
/// their turn. The batches have numbers in order, and each connection is in one of them.
#[test]
fn idle_connections_are_asked_a_batch_at_a_time() {
    over_both(|over| {
        // The predecessor asks the next ones if none has come for a while, as on a busy machine.
        let is_met = (0..5).any(|_| serves_all_but_a_batch(over));
        assert!(is_met, "those that were not asked are not served");
    });
}

/// Hands 601 connections over, and checks the batches. Returns `true` if all connections but one
/// batch are served while the first batch is not answered.
fn serves_all_but_a_batch(over: Over) -> bool {
    const IDLE: usize = 600;
    // So long that those that wait for the answer are not served meanwhile.
    let mut server = Handover::server(over, &["--linger", "100s", "--grace", "200s"]);
    let predecessor = server.serving();
    let listener = server.listener();
    let mut clients: Vec<_> = (0..IDLE).map(|_| server.idle()).collect();
    let mut busy = server.connect();
    busy.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe").fill().unwrap();
    let successor = Successor::of(&mut server);
    let mut batch = successor.passage.batch();
    // The request of the busy one ends at once, and then it is idle like the others.
    assert!(!busy.send("llo").response().says_close());
    for client in &mut clients {
        client.get("/livez");
    }
    let is_met = || clients.iter().filter(|client| client.has_something()).count() >= IDLE - BATCH;
    let deadline = Instant::now() + Duration::from_secs(2);
    while !is_met() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let is_met = is_met();
    let mut count = 0;
    for number in 1.. {
        let length = batch.sockets.len();
        assert!(length <= BATCH, "{length}");
        assert_eq!((batch.number, batch.listeners), (number, vec![listener; length]));
        count += length;
        successor.passage.send(&taken(number, length), &[]);
        if count == IDLE + 1 {
            break;
        }
        batch = successor.passage.batch();
    }
    server.assert_handed_over(predecessor, IDLE as u64 + 1);
    // No further batch.
    assert!(successor.passage.receive().is_none());
    is_met
}

// The test is the predecessor.

/// A predecessor that says what makes no sense is not heard any more, and costs nobody else anything.
#[test]
fn a_predecessor_that_makes_no_sense_costs_nobody_else() {
    over_both(|over| {
        for senseless in [b"nonsense".to_vec(), taken(1, 1)] {
            let mut predecessor = Predecessor::of(over);
            let [(first, mut kept), (second, mut lost)] = [connection(over), connection(over)];
            predecessor.send(1, &[predecessor.listener], vec![first]);
            assert_eq!(predecessor.passage.answer(), taken(1, 1));
            predecessor.send_batch(&senseless, vec![second]);
            assert!(predecessor.passage.receive().is_none());
            assert_eq!(lost.end(), End::Eof);
            let server = &mut predecessor.server;
            server.line_of(server.serving(), "the predecessor hands over no more connections: ");
            assert_live(&mut kept);
            assert_live(&mut server.connect());
            predecessor.server.end();
        }
    });
}

/// H7: the successor takes what it can of a batch that is not as it should be, in order, and says how
/// many.
#[test]
fn a_successor_takes_the_beginning_of_an_odd_batch() {
    over_both(|over| {
        let predecessor = Predecessor::of(over);
        let known = predecessor.listener;
        // It is no listener of the server's.
        let (other, _client) = connection(over);
        let unknown = inode(&other);
        let (mut number, mut kept) = (0, Vec::new());
        let cases: [(&[u64], usize, usize, bool); 6] = [
            // Listeners, sockets, how many are taken, and whether another one may be taken.
            (&[known; 2], 2, 2, true),
            // As if there were no descriptor for the rest.
            (&[known; 3], 1, 1, false),
            (&[known; 2], 0, 0, false),
            (&[known; 2], 3, 2, true),
            (&[known, unknown, known], 3, 1, true),
            (&[], 0, 0, true),
        ];
        for (listeners, sockets, count, takes_more) in cases {
            number += 1;
            let (sockets, mut clients): (Vec<_>, Vec<_>) =
                (0..sockets).map(|_| connection(over)).unzip();
            predecessor.send(number, listeners, sockets);
            let mut answer = taken(number, count);
            *answer.last_mut().unwrap() = u8::from(takes_more);
            assert_eq!(predecessor.passage.answer(), answer, "{count} of {listeners:?}");
            // The successor has no copy of those that it did not take.
            assert!(clients[count..].iter_mut().all(|client| client.end() == End::Eof));
            clients.truncate(count);
            clients.iter_mut().for_each(assert_live);
            kept.extend(clients);
        }
        kept.iter_mut().for_each(assert_live);
        predecessor.server.end();
    });
}

/// H8: the idle age and the bytes that were read ahead come along. A request wins over an age that is
/// over the limit (S7).
#[test]
fn a_successor_heeds_the_idle_age_and_the_bytes_read_ahead() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    over_both(|over| {
        let predecessor = Predecessor::of(over);
        let (sockets, mut clients): (Vec<_>, Vec<_>) = (0..4).map(|_| connection(over)).unzip();
        let get = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
        clients[3].send(get);
        let facts = [(HOUR, ""), (Duration::ZERO, ""), (HOUR, &get[..20]), (HOUR, "")]
            .map(|(idle, ahead)| (predecessor.listener, idle, ahead));
        predecessor.send_batch(&batch(1, &facts), sockets);
        assert_eq!(predecessor.passage.answer(), taken(1, 4));
        clients[2].send(&get[20..]);
        for client in &mut clients[2..] {
            assert_eq!(client.response().text(), "live\n");
        }
        assert_eq!(clients[0].end(), End::Eof);
        assert_live(&mut clients[1]);
        predecessor.server.end();
    });
}

/// A predecessor that sends batch after batch, and waits for no answer before the next one, holds up
/// neither clients nor a stop.
#[test]
fn an_endless_stream_of_batches_holds_up_nobody() {
    /// How many batches wait for the successor. The kernel has room for more.
    const AHEAD: u32 = 100;
    over_both(|over| {
        let mut predecessor = Predecessor::of(over);
        let Predecessor { server, passage, .. } = &mut predecessor;
        let answered = AtomicU32::new(0);
        thread::scope(|scope| {
            let stream = scope.spawn(|| {
                // If the test fails, nobody ends the server.
                let deadline = Instant::now() + 2 * PATIENCE;
                for number in 1.. {
                    if Instant::now() > deadline
                        || passage.try_send(&batch(number, &[]), &[]).is_err()
                    {
                        return number;
                    }
                    if number > AHEAD {
                        let Some((answer, _)) = passage.receive() else { return number };
                        assert_eq!(answer, taken(number - AHEAD, 0));
                        answered.store(number - AHEAD, Ordering::Relaxed);
                    }
                }
                0
            });
            wait_until("answers", || answered.load(Ordering::Relaxed) > AHEAD);
            for _ in 0..20 {
                assert_live(&mut server.connect());
            }
            assert!(!stream.is_finished());
            let process = server.serving();
            process.signal(Signal::TERM);
            server.line_of(process, "drained in ");
            assert_eq!(server.exit_code(process), 0);
            assert!(stream.join().unwrap() > answered.load(Ordering::Relaxed));
        });
    });
}

/// H1, S1 and S7: a connection that was taken counts, so a stop right after the answer waits for the
/// request in it.
#[test]
fn a_stop_right_after_the_answer_finishes_what_was_taken() {
    const CLIENTS: usize = 50;
    over_both(|over| {
        let mut predecessor = Predecessor::of(over);
        let (sockets, mut clients): (Vec<_>, Vec<_>) =
            (0..CLIENTS).map(|_| connection(over)).unzip();
        for client in &mut clients {
            client.post("/echo", "hello");
        }
        predecessor.send(1, &[predecessor.listener; CLIENTS], sockets);
        assert_eq!(predecessor.passage.answer(), taken(1, CLIENTS));
        let server = &mut predecessor.server;
        let process = server.serving();
        process.signal(Signal::TERM);
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello");
            assert_eq!(client.end(), End::Eof);
        }
        server.line_of(process, "drained in ");
        assert_eq!(server.exit_code(process), 0);
    });
}

// The parts of the tests above.

/// The test as the successor of a server, whose process is only there to be one.
struct Successor {
    process: ProcessId,
    passage: Passage,
}

impl Successor {
    /// Restarts a server with one listener, and takes all of its connections.
    fn of(server: &mut Handover) -> Self {
        let predecessor = server.serving();
        // The shell waits until the test has its end of the passage, and closes its own copy.
        server.successors_run("kill -STOP $$; exec 4<&-; exec sleep 60");
        predecessor.signal(Signal::USR2);
        let told = server.line_of(predecessor, "waiting for the successor, process ");
        let process = ProcessId::named(&told, "process ");
        wait_until("the successor is suspended", || process.is_suspended());
        let variables = fs::read_to_string(format!("/proc/{process}/environ")).unwrap();
        let value = |name: &str| {
            let value = variables.split('\0').find_map(|variable| variable.strip_prefix(name));
            value.unwrap_or_else(|| panic!("no {name} in {variables:?}"))
        };
        assert!(value("SMOL_GRACEFUL_PASSAGE=").starts_with("1:4:"));
        let pidfd = pidfd_open(process.0, PidfdFlags::empty()).unwrap();
        let passage = Passage::of(pidfd_getfd(&pidfd, 4, PidfdGetfdFlags::empty()).unwrap());
        process.signal(Signal::CONT);
        wait_until("the shell has closed its copy", || {
            !Path::new(&format!("/proc/{process}/fd/4")).exists()
        });
        let ready = b"READY=1\nX_TAKEN=3\nX_ADOPTS=3";
        UnixDatagram::unbound().unwrap().send_to(ready, value("NOTIFY_SOCKET=")).unwrap();
        server.wait_for_successor();
        assert_eq!(server.serving(), process);
        Self { process, passage }
    }

    /// Closes the passage. The process goes on.
    fn close(&mut self) {
        self.passage = Passage::pair().0;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill_process(self.process.0, Signal::KILL);
    }
}

/// The test as the predecessor of a server, which is the real binary with one listener.
struct Predecessor {
    server: Handover,
    passage: Passage,
    /// The inode of that listener.
    listener: u64,
}

impl Predecessor {
    fn of(over: Over) -> Self {
        let (passage, other) = Passage::pair();
        let server = Handover::start(over, SERVER.into(), |command, listen| {
            command.args(["--listen", listen]);
            command.env("SMOL_GRACEFUL_PASSAGE", format!("1:3:{}", inode(&other)));
            command.fd_mappings(vec![FdMapping { parent_fd: other, child_fd: 3 }]).unwrap();
        });
        let listener = server.listener();
        Self { server, passage, listener }
    }

    /// Sends connections of which the test has no copy then. They came to these listeners, and have
    /// just fallen idle.
    fn send(&self, number: u32, listeners: &[u64], sockets: Vec<OwnedFd>) {
        let connections: Vec<_> =
            listeners.iter().map(|listener| (*listener, Duration::ZERO, "")).collect();
        self.send_batch(&batch(number, &connections), sockets);
    }

    fn send_batch(&self, batch: &[u8], sockets: Vec<OwnedFd>) {
        self.passage.send(batch, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>());
        drop(sockets);
    }
}

/// An end of a passage.
struct Passage(OwnedFd);

/// A batch, as the successor gets it.
struct Batch {
    number: u32,
    /// The inode of each connection's listener.
    listeners: Vec<u64>,
    sockets: Vec<OwnedFd>,
}

impl Passage {
    fn of(end: OwnedFd) -> Self {
        let socket = SockRef::from(&end);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(end)
    }

    /// Returns the test's end, and the other one.
    fn pair() -> (Self, OwnedFd) {
        let (own, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Self::of(own), other)
    }

    fn send(&self, bytes: &[u8], sockets: &[BorrowedFd<'_>]) {
        self.try_send(bytes, sockets).unwrap();
    }

    /// Waits for room if there is none.
    fn try_send(&self, bytes: &[u8], sockets: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(sockets)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Returns the next message and the sockets that come with it, or `None` at the end.
    fn receive(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let length = match recvmsg(&self.0, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            // The other end was closed with something unread.
            Err(Errno::CONNRESET) => return self.receive(),
            Err(error) => panic!("nothing comes through the passage: {error}"),
        };
        let sockets = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let sockets = sockets.flatten().collect();
        bytes.truncate(length);
        (length > 0).then_some((bytes, sockets))
    }

    /// Returns the answer of the successor.
    fn answer(&self) -> Vec<u8> {
        self.receive().expect("the passage is closed").0
    }

    /// Returns the next batch of the predecessor.
    fn batch(&self) -> Batch {
        let (bytes, sockets) = self.receive().expect("the passage is closed");
        let rest = &mut &bytes[..];
        assert_eq!(take::<1>(rest), *b"C");
        let (number, count) = (u32::from_be_bytes(take(rest)), u16::from_be_bytes(take(rest)));
        let listeners = (0..count).map(|_| {
            let (listener, _idle) = (u64::from_be_bytes(take(rest)), take::<8>(rest));
            let ahead = u32::from_be_bytes(take(rest));
            *rest = &rest[ahead as usize..];
            listener
        });
        let listeners = listeners.collect();
        assert!(rest.is_empty());
        Batch { number, listeners, sockets }
    }
}

const SPACE: usize = cmsg_space!(ScmRights(BATCH));

/// Takes the next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (bytes, behind) = rest.split_first_chunk().unwrap();
    *rest = behind;
    *bytes
}

/// Returns a batch of connections: the listener of each, how long it has been idle, and the bytes
/// that were read ahead.
fn batch(number: u32, connections: &[(u64, Duration, &str)]) -> Vec<u8> {
    let mut bytes = b"C".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u16::try_from(connections.len()).unwrap().to_be_bytes());
    for (listener, idle, ahead) in connections {
        bytes.extend(listener.to_be_bytes());
        bytes.extend(u64::try_from(idle.as_millis()).unwrap().to_be_bytes());
        bytes.extend(u32::try_from(ahead.len()).unwrap().to_be_bytes());
        bytes.extend(ahead.as_bytes());
    }
    bytes
}

/// Returns the answer that so many connections were taken, and that more would be.
fn taken(number: u32, count: usize) -> Vec<u8> {
    let mut bytes = b"T".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u16::try_from(count).unwrap().to_be_bytes());
    bytes.push(1);
    bytes
}

/// Returns a connection as a predecessor has it, and its client.
fn connection(over: Over) -> (OwnedFd, Client) {
    match over {
        Over::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0.into(), client.into())
        }
        Over::Unix => {
            let (server, client) = UnixStream::pair().unwrap();
            (server.into(), client.into())
        }
    }
}

/// Reads a POST of `hello`, and answers `fake`.
fn answer_as_fake(socket: OwnedFd) {
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    // Over TCP, too: this only reads and writes.
    let mut server = Client::from(stream);
    server.take_to(b"\r\n\r\nhello").unwrap();
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake");
}

/// Asserts that the connection serves a request, and goes on.
fn assert_live(client: &mut Client) {
    let response = client.get("/livez").response();
    assert_eq!((&*response.text(), response.says_close()), ("live\n", false));
}

fn inode(socket: &OwnedFd) -> u64 {
    File::from(socket.try_clone().unwrap()).metadata().unwrap().ino()
}

/// Serves if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}
