//! Tests of [`Channel`] over real socket pairs: whole messages with their descriptors, the end of a
//! channel, and which process inherits an end.
//!
//! A test that needs another process, or other limits, runs itself again in a process of its own.

use super::*;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use async_io::Timer;
use command_fds::{CommandFdExt, FdMapping};
use futures_lite::FutureExt;
use futures_lite::future::{block_on, poll_once};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::descriptors::FIRST;
use crate::limits::Limits;
use crate::restart::message::{Record, Taken};

fn ends() -> (Channel, Channel) {
    let (own, other) = Channel::pair().unwrap();
    (own, Channel::of(other).unwrap())
}

/// Returns a batch of `count` connections, with as many bytes read ahead as a batch may have.
fn batch(count: usize) -> Message {
    let lengths = (0..count).map(|index| match index {
        0 => Limits::MOST_AHEAD - (count - 1) * (Limits::MOST_AHEAD / count),
        _ => Limits::MOST_AHEAD / count,
    });
    let connections = lengths.map(|length| {
        let ahead = vec![b'x'; length];
        Record { listener: 7, idle: Duration::ZERO, ahead }
    });
    Message::Connections { number: 1, connections: connections.collect() }
}

const ANSWER: Message = Message::Taken(Taken { number: 1, count: 1, takes_more: true });

/// Returns `count` sockets, and the other end of each.
fn sockets(count: usize) -> (Vec<UnixStream>, Vec<UnixStream>) {
    (0..count).map(|_| UnixStream::pair().unwrap()).unzip()
}

fn borrowed(sockets: &[UnixStream]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().map(AsFd::as_fd).collect()
}

fn inodes<S: AsFd>(sockets: &[S]) -> Vec<u64> {
    sockets.iter().map(|socket| inode(socket).unwrap()).collect()
}

/// Waits for the next message or the end. The end may come a moment late, because a process
/// that another test starts has copies of all descriptors for that moment.
fn received(passage: &Channel) -> io::Result<Option<Received>> {
    let too_late = async {
        Timer::after(PATIENCE).await;
        panic!("nothing has come")
    };
    block_on(passage.receive().or(too_late))
}

const PATIENCE: Duration = Duration::from_secs(20);

fn is_inherited(descriptor: impl AsFd) -> bool {
    !fcntl_getfd(descriptor).unwrap().contains(FdFlags::CLOEXEC)
}

fn is_open(mut other_end: &UnixStream) -> bool {
    other_end.set_nonblocking(true).unwrap();
    let read = other_end.read(&mut [0]);
    other_end.set_nonblocking(false).unwrap();
    read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Waits until the other side of a socket is closed. Returns `true` if that happens.
fn closes(mut other_end: &UnixStream) -> bool {
    other_end.set_read_timeout(Some(PATIENCE)).unwrap();
    other_end.read(&mut [0]).is_ok_and(|n| n == 0)
}

#[test]
fn the_longest_batch_comes_whole_and_in_order_and_no_child_inherits_it() {
    let (predecessor, successor) = ends();
    assert_eq!(batch(BATCH).encode().len(), LONGEST);
    let (sockets, _clients) = sockets(BATCH);
    predecessor.send(&batch(BATCH), &borrowed(&sockets)).unwrap();
    let (message, descriptors) = received(&successor).unwrap().unwrap();
    assert_eq!(message, batch(BATCH));
    assert_eq!(inodes(&descriptors), inodes(&sockets));
    assert!(!descriptors.iter().any(is_inherited));
    for end in [predecessor, successor].map(|passage| passage.into_fd().unwrap()) {
        assert!(!is_inherited(end));
    }
}

/// The kernel passes at most [`BATCH`] descriptors in a message.
#[test]
fn a_longer_batch_is_an_error_and_nothing_of_it_comes() {
    let (predecessor, successor) = ends();
    let (socket, _client) = UnixStream::pair().unwrap();
    for count in [BATCH + 1, BATCH + 2, 2 * BATCH] {
        let sent = predecessor.send(&batch(1), &vec![socket.as_fd(); count]);
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(block_on(poll_once(successor.receive())).is_none());
    }
    predecessor.send(&batch(1), &[socket.as_fd(); BATCH]).unwrap();
}

#[test]
fn messages_come_one_by_one() {
    let (predecessor, successor) = ends();
    let (socket, _client) = UnixStream::pair().unwrap();
    predecessor.send(&batch(1), &[socket.as_fd()]).unwrap();
    predecessor.send(&Message::Pass, &[]).unwrap();
    successor.send(&ANSWER, &[]).unwrap();
    let (message, descriptors) = received(&successor).unwrap().unwrap();
    assert_eq!((message, descriptors.len()), (batch(1), 1));
    let (message, descriptors) = received(&successor).unwrap().unwrap();
    assert_eq!((message, descriptors.len()), (Message::Pass, 0));
    assert_eq!(received(&predecessor).unwrap().unwrap().0, ANSWER);
}

#[test]
fn a_message_that_comes_later_is_waited_for() {
    let (predecessor, successor) = ends();
    // A dropped future loses no message.
    assert!(block_on(poll_once(successor.receive())).is_none());
    let waiting = thread::spawn(move || block_on(successor.receive()));
    predecessor.send(&ANSWER, &[]).unwrap();
    assert_eq!(waiting.join().unwrap().unwrap().unwrap().0, ANSWER);
}

/// The sender can try again later.
#[test]
fn a_passage_that_is_full_takes_no_message_and_loses_none() {
    let (predecessor, successor) = ends();
    let is_sent = || predecessor.send(&ANSWER, &[]).is_ok();
    let sent = (0..100_000).take_while(|_| is_sent()).count();
    assert!(sent < 100_000, "nothing pushes back");
    let error = predecessor.send(&ANSWER, &[]).unwrap_err();
    assert!(is_congested(&error), "{error}");
    let late = Message::Pass;
    let reading = thread::spawn(move || {
        let next = || block_on(successor.receive()).unwrap().unwrap().0;
        (0..=sent).map(|_| next()).collect::<Vec<_>>()
    });
    while predecessor.send(&late, &[]).is_err() {
        thread::yield_now();
    }
    let read = reading.join().unwrap();
    assert_eq!(read.len(), sent + 1);
    assert!(read[..sent].iter().all(|message| *message == ANSWER) && read[sent] == late);
}

/// A passage that was given to another process keeps its unread messages.
#[test]
fn what_is_unread_in_an_end_that_is_passed_on_goes_along() {
    let ((predecessor, successor), (onward, newest)) = (ends(), ends());
    predecessor.send(&ANSWER, &[]).unwrap();
    let end = successor.into_fd().unwrap();
    onward.send(&Message::Pass, &[end.as_fd()]).unwrap();
    drop(end);
    predecessor.send(&batch(2), &[]).unwrap();
    let (message, mut descriptors) = received(&newest).unwrap().unwrap();
    assert_eq!((&message, descriptors.len()), (&Message::Pass, 1));
    let passed_on = Channel::of(descriptors.remove(0)).unwrap();
    assert_eq!(received(&passed_on).unwrap().unwrap().0, ANSWER);
    assert_eq!(received(&passed_on).unwrap().unwrap().0, batch(2));
    passed_on.send(&ANSWER, &[]).unwrap();
    assert_eq!(received(&predecessor).unwrap().unwrap().0, ANSWER);
    drop(passed_on);
    assert!(received(&predecessor).unwrap().is_none());
}

#[test]
fn an_end_that_is_in_a_closed_passage_is_closed() {
    let ((predecessor, successor), (onward, newest)) = (ends(), ends());
    let end = successor.into_fd().unwrap();
    onward.send(&Message::Pass, &[end.as_fd()]).unwrap();
    drop((end, newest));
    assert!(received(&predecessor).unwrap().is_none());
}

#[test]
fn a_closed_end_is_the_end() {
    let (predecessor, successor) = ends();
    let waiting = thread::spawn(move || block_on(successor.receive()));
    drop(predecessor);
    assert!(waiting.join().unwrap().unwrap().is_none());

    let (predecessor, successor) = ends();
    predecessor.send(&ANSWER, &[]).unwrap();
    drop(predecessor);
    assert_eq!(received(&successor).unwrap().unwrap().0, ANSWER);
    assert!(received(&successor).unwrap().is_none());
    assert!(received(&successor).unwrap().is_none());
    let error = successor.send(&ANSWER, &[]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let error = successor.send(&batch(1), &[]).unwrap_err();
    assert!(!is_congested(&error), "{error}");
}

/// If the other end was closed with something unread, the kernel reports that before it gives
/// the queued answer. This process must not miss the answer, or two processes would read the
/// same sockets.
#[test]
fn an_answer_is_not_lost_to_a_close() {
    let (predecessor, successor) = ends();
    let (sockets, clients) = sockets(2);
    predecessor.send(&batch(2), &borrowed(&sockets)).unwrap();
    successor.send(&ANSWER, &[]).unwrap();
    drop(successor);
    assert_eq!(received(&predecessor).unwrap().unwrap().0, ANSWER);
    assert!(received(&predecessor).unwrap().is_none());
    // Nothing of the unread batch stays in the kernel.
    drop(sockets);
    assert!(clients.iter().all(closes));

    let (predecessor, successor) = ends();
    predecessor.send(&batch(1), &[]).unwrap();
    drop(successor);
    assert!(received(&predecessor).unwrap().is_none());
    assert!(received(&predecessor).unwrap().is_none());
}

#[test]
fn what_is_no_message_is_invalid_data_and_its_descriptors_are_closed() {
    // The last text begins like a message, and has one byte too many.
    let longer = [batch(BATCH).encode(), vec![0; 1]].concat();
    for garbage in [&b"?"[..], b"C", b"T\0\0\0\x07\0\x01\x02", &longer] {
        let (predecessor, successor) = ends();
        let (socket, client) = UnixStream::pair().unwrap();
        send_packet(predecessor.socket.as_fd(), garbage, &[socket.as_fd()]).unwrap();
        drop(socket);
        assert!(is_open(&client));
        let error = received(&successor).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(closes(&client));
        // The passage still works.
        predecessor.send(&ANSWER, &[]).unwrap();
        assert_eq!(received(&successor).unwrap().unwrap().0, ANSWER);
    }
}

// ── In a process of its own ─────────────────────────────────────────────────────────────

/// The environment variable that names the part of a test for a process of its own.
const CHILD: &str = "SMOL_GRACEFUL_TEST_CHILD";

/// Runs a test of this module in a process of its own, with these descriptors from 3 on.
fn run_again(test: &str, part: &str, word: &str, descriptors: Vec<OwnedFd>) {
    let name = format!("restart::channel::tests::{test}");
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture"]).env(CHILD, part).env(KEEPER, word);
    let mappings = descriptors.into_iter().zip(FIRST..);
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    let output = command.fd_mappings(mappings.collect()).unwrap().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{word} {part}: {output:?}");
}

/// A process with too few free descriptors gets the first ones, and not an error. The kernel
/// closes the rest, so only the sender's copies keep those sockets open.
#[test]
fn too_few_descriptors_get_the_beginning_of_a_batch() {
    if env::var_os(CHILD).is_none() {
        // The limit holds for a whole process.
        run_again("too_few_descriptors_get_the_beginning_of_a_batch", "all", "", vec![]);
        return;
    }
    let (predecessor, successor) = ends();
    let (sockets, clients) = sockets(20);
    predecessor.send(&batch(20), &borrowed(&sockets)).unwrap();
    let before = getrlimit(Resource::Nofile);
    let next = File::open("/dev/null").unwrap();
    let allowed = u64::try_from(next.as_raw_fd()).unwrap() + 7;
    drop(next);
    setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), ..before }).unwrap();
    let (message, descriptors) = received(&successor).unwrap().unwrap();
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(message, batch(20));
    let count = descriptors.len();
    assert!((1..20).contains(&count), "{count}");
    assert_eq!(inodes(&descriptors), inodes(&sockets[..count]));
    assert!(!descriptors.iter().any(is_inherited));
    assert!(clients.iter().all(is_open));
    drop(sockets);
    assert!(clients[..count].iter().all(is_open));
    assert!(clients[count..].iter().all(closes));
}

#[test]
fn a_process_takes_only_the_channel_that_it_was_given() {
    let number = |fd: RawFd| fs::metadata(format!("/dev/fd/{fd}")).ok().map(|file| file.ino());
    match env::var(CHILD).as_deref() {
        Err(_) => {}
        Ok("takes") => {
            let passage = Channel::from_env().expect("the channel");
            assert!(!is_inherited(passage.socket.as_fd()));
            assert!(Channel::from_env().is_none(), "the process has taken it before");
            return passage.send(&ANSWER, &[]).unwrap();
        }
        Ok("leaves") => {
            let before = [number(3), number(4)];
            assert!(Channel::from_env().is_none());
            assert_eq!([number(3), number(4)], before);
            return;
        }
        Ok(_) => {
            let before = number(3);
            assert!(before.is_some() && Channel::from_env().is_none());
            assert_ne!(number(3), before);
            return;
        }
    }
    let run = |part: &str, word: &dyn Fn(&OwnedFd) -> String| {
        let (passage, end) = Channel::pair().unwrap();
        let (other, _its_end) = UnixStream::pair().unwrap();
        let word = word(&end);
        let test = "a_process_takes_only_the_channel_that_it_was_given";
        run_again(test, part, &word, vec![end, other.into()]);
        passage
    };
    let taken = run("takes", &|end| Channel::env_value(end, 3).unwrap());
    assert_eq!(received(&taken).unwrap().unwrap().0, ANSWER);
    assert!(received(&taken).unwrap().is_none());
    // The variable names another socket, or makes no sense.
    let inode = |end: &OwnedFd| inode(end).unwrap();
    run("leaves", &|end| format!("2:3:{}", inode(end) + 1));
    run("leaves", &|end| format!("2:4:{}", inode(end)));
    run("leaves", &|end| format!("2:99:{}", inode(end)));
    run("leaves", &|end| format!("2:-1:{}", inode(end)));
    run("leaves", &|end| format!("2:x:{}", inode(end)));
    run("leaves", &|end| format!("3:{}", inode(end)));
    run("leaves", &|_| String::new());
    // The child closes the channel of another version, so the keeper sees its end.
    run("closes", &|end| format!("1:3:{}", inode(end)));
}
