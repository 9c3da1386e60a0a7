//! The parent channel with messages that make no sense. The test plays the keeper of the real
//! binary, or a child of the real keeper.
//!
//! So the test sees the messages, and sends messages that no process of this version would send.
//! The real process goes on, finishes its requests, and ends at a stop.

#![cfg(target_os = "linux")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Command;

use common::fakes::{self, FakeChild, FakeKeeper};
use common::handover::{self, Handover, SocketKind, assert_live, over_tcp_and_unix, suspend};
use common::messages::{
    ALONE, Channel, KEEPER, PASS, Ready, Served, leave, offer, ready, ready_with, taken,
};
use common::{Client, Directory, End, is_refused, keep, next_message, service_manager, wait_until};
use rustix::process::{Signal, kill_process};

const HEAD: &str = "GET /livez HTTP/1.1\r\nHost: test\r\n\r\n";

// The test is the keeper.

/// A child sends READY once, with the number that it was offered.
#[test]
fn a_child_says_which_listeners_it_serves() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start_with(over, |_| {}, &[offer(&[7])]);
        let listeners = vec![Served { number: 7, adopts: true, brought: None }];
        assert_eq!(keeper.ready, Ready { resumes: 0, listeners });
        assert_live(&mut keeper.connect());
        keeper.end();
        assert_eq!(keeper.channel.receive().map(|(bytes, _)| bytes), None);
    });
}

/// A listener that the child has bound itself gets the first number above all offered ones, and
/// READY brings its socket.
#[test]
fn a_child_gives_what_it_has_bound_to_the_keeper() {
    let directory = Directory::new();
    let path = directory.join("own").display().to_string();
    let listen = format!("127.0.0.1:0,unix:{path}");
    let configure = |command: &mut Command| {
        command.args(["--listen", &listen]);
    };
    let (mut child, channel, _listener, _, _own) =
        fakes::spawn(SocketKind::Tcp, configure, &[offer(&[7])]);
    let (ready, brought) = channel.ready();
    let [ours, theirs] = &ready.listeners[..] else { panic!("{ready:?}") };
    assert_eq!(*ours, Served { number: 7, adopts: true, brought: None });
    assert_eq!((theirs.number, theirs.adopts), (8, true));
    assert_eq!(theirs.brought, Some((true, path.clone())));
    let brought: [OwnedFd; 1] = brought.try_into().unwrap();
    let socket = UnixListener::from(brought.into_iter().next().unwrap());
    assert_eq!(socket.local_addr().unwrap().as_pathname().unwrap().to_str(), Some(&*path));
    child.stop();
}

/// At LEAVE with a passage, the child hands its connections over, and the listening socket stays
/// open for other processes.
#[test]
fn a_child_hands_over_to_the_one_that_leave_names() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        let mut client = keeper.connect();
        assert_live(&mut client);
        let (passage, other) = Channel::pair();
        keeper.channel.send(&leave(4711, &[0], &[0]), &[other.as_fd()]);
        drop(other);
        keeper.child.wait_for("process 4711 has taken over: 1 connection, ");
        let batch = passage.batch();
        assert_eq!((batch.number, &*batch.listeners), (1, &[0][..]));
        passage.send(&taken(1, 1), &[]);
        assert_eq!(keeper.child.exit_code(), 0, "{}", keeper.child);
        // The test has the connection now.
        client.send("x");
        let mut kept = Client::from(std::os::unix::net::UnixStream::from(
            batch.sockets.into_iter().next().unwrap(),
        ));
        kept.stream.set_nonblocking(false).unwrap();
        assert_eq!(kept.take(1).unwrap(), b"x");
        // A client waits for the successor, because the child leaves the queue to it.
        let waiting = keeper.connect();
        waiting.assert_silent();
    });
}

/// LEAVE without a passage is a stop like any other, but the queue is the successor's.
#[test]
fn a_child_without_a_passage_closes_its_connections() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        let (mut idle, mut half) = (keeper.connect(), keeper.connect());
        assert_live(&mut idle);
        assert_live(&mut half);
        half.send(&HEAD[..20]);
        assert_live(&mut keeper.connect());
        keeper.channel.send(&leave(4711, &[0], &[]), &[]);
        assert_eq!(idle.end(), End::Eof);
        let response = half.send(&HEAD[20..]).response();
        assert_eq!((&*response.text(), response.says_close()), ("live\n", true));
        assert_eq!(keeper.child.exit_code(), 0, "{}", keeper.child);
        keeper.connect().assert_silent();
    });
}

/// K3: no other process has a listener that the successor does not serve, so the child serves its
/// queue, and closes it.
#[test]
fn a_child_empties_the_queue_that_leave_does_not_name() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        keeper.child.signal(Signal::STOP);
        let mut clients = clients_in_queue(&keeper);
        keeper.channel.send(&leave(4711, &[], &[]), &[]);
        keeper.listener = None;
        keeper.child.signal(Signal::CONT);
        for client in &mut clients {
            assert_eq!(client.response().text(), "live\n");
        }
        assert_eq!(keeper.child.exit_code(), 0, "{}", keeper.child);
        if let SocketKind::Tcp = over {
            assert!(is_refused(keeper.child.addr));
        }
    });
}

/// K5: after ALONE, a stop serves the queue, because no other process will. ALONE itself does not
/// stop the child.
#[test]
fn a_child_that_is_alone_empties_its_queue() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        keeper.channel.send(ALONE, &[]);
        keeper.listener = None;
        for _ in 0..3 {
            assert_live(&mut keeper.connect());
        }
        keeper.child.signal(Signal::STOP);
        let mut clients = clients_in_queue(&keeper);
        keeper.child.signal(Signal::TERM);
        keeper.child.signal(Signal::CONT);
        for client in &mut clients {
            assert_eq!(client.response().text(), "live\n");
        }
        assert_eq!(keeper.child.exit_code(), 0, "{}", keeper.child);
    });
}

/// Without ALONE, a stop leaves the queue to the other processes with the socket.
#[test]
fn a_child_that_is_not_alone_leaves_the_queue() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        keeper.end();
        keeper.connect().assert_silent();
    });
}

/// K6: the end of the channel means the end of the keeper. The child finishes its requests and the
/// queue, and ends.
#[test]
fn a_child_ends_when_its_keeper_is_gone() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        let mut busy = keeper.connect();
        busy.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe").fill().unwrap();
        keeper.child.signal(Signal::STOP);
        let mut clients = clients_in_queue(&keeper);
        keeper.channel = Channel::pair().0;
        keeper.listener = None;
        keeper.child.signal(Signal::CONT);
        keeper.child.wait_for("the keeper is gone; stopping: ");
        for client in &mut clients {
            assert_eq!(client.response().text(), "live\n");
        }
        assert_eq!(busy.send("llo").response().text(), "hello");
        assert_eq!(keeper.child.exit_code(), 0, "{}", keeper.child);
    });
}

/// The channel may end before READY, and after PASS, LEAVE or ALONE. The child ends by itself each
/// time.
#[test]
fn the_channel_may_end_at_each_moment() {
    over_tcp_and_unix(|over| {
        let (mut child, channel, listener, ..) = fakes::spawn(over, |_| {}, &[offer(&[0])]);
        drop((channel, listener));
        assert_eq!(child.exit_code(), 0, "{child}");

        let words: [&[Vec<u8>]; 5] = [
            &[PASS.to_vec()],
            &[leave(4711, &[0], &[0])],
            &[PASS.to_vec(), leave(4711, &[0], &[0])],
            &[ALONE.to_vec()],
            &[leave(4711, &[0], &[]), ALONE.to_vec()],
        ];
        for words in words {
            let mut keeper = FakeKeeper::start(over);
            let mut client = keeper.connect();
            assert_live(&mut client);
            let (passage, other) = Channel::pair();
            for word in words {
                let has_end = word[0] != ALONE[0] && !word.ends_with(&[0, 0]);
                let end = has_end.then(|| other.as_fd());
                keeper.channel.send(word, end.as_slice());
            }
            drop((passage, other));
            keeper.channel = Channel::pair().0;
            assert_eq!(keeper.child.exit_code(), 0, "{words:?}: {}", keeper.child);
            assert_eq!(client.end(), End::Eof);
        }
    });
}

/// A child does not use the channel of a keeper of another version, and sends READY=1 like any
/// other program.
#[test]
fn a_keeper_of_another_version_hears_ready_by_its_socket() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let configure = |command: &mut Command| {
        let other = command.get_envs().find_map(|(name, value)| (name == KEEPER).then_some(value));
        let other = other.flatten().unwrap().to_str().unwrap().replacen("2:", "1:", 1);
        command.env(KEEPER, other).env("NOTIFY_SOCKET", directory.join("manager"));
    };
    let (mut child, channel, _listener, _, _own) =
        fakes::spawn(SocketKind::Tcp, configure, &[offer(&[0])]);
    assert_eq!(next_message(&manager), "READY=1\n");
    // Such a child closes the channel without reading it.
    assert_eq!(channel.receive().map(|(bytes, _)| bytes), None);
    assert_live(&mut Client::connect(child.addr));
    child.stop();
}

/// A child ignores an OFFER that makes no sense, and binds its own socket.
#[test]
fn an_offer_that_makes_no_sense_is_not_heard() {
    let cut = offer(&[0])[..5].to_vec();
    let cases: [&[Vec<u8>]; 4] = [&[], &[b"nonsense".to_vec()], &[cut], &[ready(&[0])]];
    for words in cases {
        let directory = Directory::new();
        let manager = service_manager(&directory);
        let configure = |command: &mut Command| {
            command.env("NOTIFY_SOCKET", directory.join("manager"));
        };
        let (mut child, _channel, _listener, _, _own) =
            fakes::spawn(SocketKind::Tcp, configure, words);
        assert_eq!(next_message(&manager), "READY=1\n", "{words:?}: {child}");
        assert_live(&mut Client::connect(child.addr));
        child.stop();
    }
}

/// A message that makes no sense changes nothing. The child serves, takes connections, and ends at
/// a stop.
#[test]
fn a_child_goes_on_when_its_keeper_makes_no_sense() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        let null = std::fs::File::open("/dev/null").unwrap();
        let senseless =
            [offer(&[0]), offer(&[0, 1]), ready(&[0]), taken(1, 1), b"?".to_vec(), vec![0; 9000]];
        for word in &senseless {
            keeper.channel.send(word, &[]);
        }
        // The passage is missing, or is not a socket.
        keeper.channel.send(PASS, &[]);
        keeper.channel.send(PASS, &[null.as_fd()]);
        let (first, end_of_first) = Channel::pair();
        let (second, end_of_second) = Channel::pair();
        keeper.channel.send(PASS, &[end_of_first.as_fd()]);
        keeper.channel.send(PASS, &[end_of_second.as_fd(), null.as_fd()]);
        drop((end_of_first, end_of_second));
        for passage in [first, second] {
            passage.send(&common::messages::batch(1, &[]), &[]);
            assert_eq!(passage.message(), taken(1, 0));
        }
        assert_live(&mut keeper.connect());
        keeper.end();
    });
}

/// Only the first LEAVE begins the end of a child, and a LEAVE before READY counts.
#[test]
fn a_child_leaves_once() {
    over_tcp_and_unix(|over| {
        let mut keeper = FakeKeeper::start(over);
        let mut busy = keeper.connect();
        busy.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe").fill().unwrap();
        let (passage, other) = Channel::pair();
        keeper.channel.send(&leave(4711, &[0], &[0]), &[other.as_fd()]);
        let (second, other_of_second) = Channel::pair();
        keeper.channel.send(&leave(4712, &[0], &[0]), &[other_of_second.as_fd()]);
        drop((other, other_of_second));
        assert_eq!(busy.send("llo").response().text(), "hello");
        let batch = passage.batch();
        assert_eq!(batch.sockets.len(), 1);
        passage.send(&taken(1, 1), &[]);
        assert_eq!(keeper.child.exit_code(), 0, "{}", keeper.child);
        assert!(second.receive().is_none());

        let words = [offer(&[0]), leave(4711, &[0], &[])];
        let (mut child, _channel, _listener, ..) = fakes::spawn(over, |_| {}, &words);
        assert_eq!(child.exit_code(), 0, "{child}");
    });
}

// The test is a child.

/// A READY that makes no sense, in each possible way, harms neither the keeper nor the child that
/// serves. Its sender counts as not ready.
#[test]
fn a_ready_that_makes_no_sense_is_not_heard() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::with_patience(over, "1s");
        let predecessor = server.serving();
        let mut client = server.idle();
        let null = std::fs::File::open("/dev/null").unwrap();
        let words: [(&[u8], usize); 5] = [
            (b"R", 0),
            (b"nonsense", 0),
            (&offer(&[0]), 0),
            (&leave(1, &[0], &[0]), 1),
            (&vec![b'R'; 9000], 2),
        ];
        let successor = FakeChild::successor_of(&mut server);
        for (word, descriptors) in words {
            successor.channel.send(word, &vec![null.as_fd(); descriptors]);
        }
        let told = server.line_of(server.keeper(), "keeper: no restart: process ");
        let expected = format!("process {} was not ready within 1s (no READY=1", successor.process);
        assert!(told.contains(&expected), "{told}");
        assert!(told.ends_with(&format!("process {predecessor} goes on")), "{told}");
        assert_live(&mut client);
        server.restart();
        assert_live(&mut client);
        server.end();
    });
}

/// A second READY is ignored, so the predecessor gets one LEAVE.
#[test]
fn only_the_first_ready_counts() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let predecessor = server.serving();
        let successor = FakeChild::successor_of(&mut server);
        successor.say_ready(&[0]);
        successor.say_ready(&[]);
        successor.channel.pass();
        server.wait_for_successor();
        successor.say_ready(&[0]);
        server.assert_handed_over(predecessor, 0);
        let told = server.servers.program.to_string();
        assert_eq!(told.matches(" is ready after ").count(), 2, "{told}");
        assert_eq!(told.matches(" takes over from process ").count(), 1, "{told}");
        // The third child is the real binary.
        assert_taken_over_by_next(&mut server, &successor);
        server.stop();
    });
}

/// K2: if a successor sends READY and dies at once, the predecessor goes on as if nothing had
/// happened.
#[test]
fn a_successor_that_is_ready_and_dead_changes_nothing() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let predecessor = server.serving();
        let mut client = server.idle();
        // The keeper is suspended, so it sees both at the same time.
        let successor = FakeChild::successor_of(&mut server);
        suspend(server.keeper());
        successor.say_ready(&[0]);
        successor.process.signal(Signal::KILL);
        server.keeper().signal(Signal::CONT);
        let told = server.line_of(server.keeper(), "keeper: no restart: process ");
        assert!(told.contains("signal: 9 (SIGKILL)"), "{told}");
        assert!(told.ends_with(&format!("process {predecessor} goes on")), "{told}");
        assert_live(&mut client);
        server.restart();
        assert_live(&mut client);
        server.end();
    });
}

/// READY may name unknown listeners, and bring sockets that do not listen.
#[test]
fn a_ready_with_unknown_listeners_takes_only_the_known_ones() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let predecessor = server.serving();
        let successor = FakeChild::successor_of(&mut server);
        successor.say_ready(&[7, 0, 0, u32::MAX]);
        let _passage = successor.channel.pass();
        server.wait_for_successor();
        server.assert_handed_over(predecessor, 0);
        assert_taken_over_by_next(&mut server, &successor);
        server.stop();
    });
}

/// A socket that a child brings goes to the next child, like the keeper's own.
#[test]
fn a_socket_that_a_child_brings_is_offered_to_the_next() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let successor = FakeChild::successor_of(&mut server);
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let kept = Served { number: 0, adopts: true, brought: None };
        let brought = Some((true, String::new()));
        let brought = Served { number: 1, adopts: true, brought };
        successor.channel.send(&ready_with(&[kept, brought]), &[socket.as_fd()]);
        drop(socket);
        let _passage = successor.channel.pass();
        server.wait_for_successor();
        // The channel is descriptor 5 in this child.
        server.successors_run("kill -STOP $$; exec 5<&-; exec sleep 60");
        server.servers.signal(Signal::USR2);
        let next = server.servers.wait_for_start();
        wait_until("the next child is suspended", || next.is_suspended());
        let variables = std::fs::read_to_string(format!("/proc/{next}/environ")).unwrap();
        assert!(variables.split('\0').any(|variable| variable == "LISTEN_FDS=2"), "{variables}");
        let end = handover::copy_of(next, 5).expect("no channel");
        next.signal(Signal::CONT);
        let channel = Channel::of(end);
        let offered = channel.offer();
        let numbers: Vec<_> = offered.iter().map(|(number, ..)| *number).collect();
        assert_eq!(numbers, [0, 1], "{offered:?}");
        // The socket still listens. Then the successor takes only this one.
        Client::connect(address);
        channel.send(&ready(&[1]), &[]);
        server.wait_for_successor();
        server.line_of(server.keeper(), &format!("keeper: process {next} does not listen on "));
        // Both processes of the stand-ins have copies of the socket.
        successor.process.signal(Signal::KILL);
        server.servers.line_of_end(successor.process);
        next.signal(Signal::KILL);
        server.servers.line_of_end(next);
        wait_until("the other one is closed", || server.listeners().is_empty());
        Client::connect(address);
    });
}

/// The keeper does not wait for a child that never reads. The next restart works, and a stop ends
/// the child.
#[test]
fn a_child_that_never_reads_holds_up_nothing() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut successor = FakeChild::successor_of(&mut server);
        successor.say_ready(&[0]);
        server.wait_for_successor();
        suspend(successor.process);
        server.take_over();
        assert_live(&mut server.connect());
        // LEAVE is in the channel, and the child closes it without reading.
        successor.close();
        server.restart();
        assert_live(&mut server.connect());
        server.servers.signal(Signal::TERM);
        server.line_of(server.keeper(), "keeper: stopping because of SIGTERM");
        successor.process.signal(Signal::CONT);
        // `sleep` dies of the signal.
        assert_eq!(server.servers.program.exit_code(), 1, "{}", server.servers.program);
        assert_eq!(server.processes().next(), None);
    });
}

/// A child that closes its channel and lives on serves until the next restart, at which it gets a
/// signal.
#[test]
fn a_child_that_closes_the_channel_lives_on() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut successor = FakeChild::successor_of(&mut server);
        successor.say_ready(&[0]);
        server.wait_for_successor();
        successor.close();
        assert!(successor.process.is_running());
        server.take_over();
        assert_live(&mut server.connect());
        let end = server.servers.line_of_end(successor.process);
        assert!(end.contains("signal: 15 (SIGTERM)"), "{end}");
        server.stop();
    });
}

/// A child that ignores LEAVE stays beside its successors until the stop.
#[test]
fn a_child_that_ignores_leave_ends_with_the_keeper() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let successor = FakeChild::successor_of(&mut server);
        successor.say_ready(&[0]);
        successor.channel.pass();
        server.wait_for_successor();
        server.take_over();
        let (word, passage) = successor.channel.leave();
        assert_eq!(word.successor, server.serving().number().unsigned_abs());
        assert_eq!((&*word.taken, &*word.adopted), (&[0][..], &[0][..]));
        assert!(passage.is_some());
        assert_live(&mut server.connect());
        assert!(successor.process.is_running());
        server.servers.signal(Signal::TERM);
        assert_eq!(successor.channel.message(), ALONE);
        assert_eq!(server.servers.program.exit_code(), 1, "{}", server.servers.program);
        assert_eq!(server.processes().next(), None);
    });
}

/// A foreign program may send READY=1 in any order with other words, in a long datagram, too.
#[test]
fn ready_may_stand_between_other_words() {
    let long = "s".repeat(3000);
    for words in [
        format!("STATUS={long}\nX_TAKEN=3\nREADY=1"),
        format!("READY=1\nSTATUS={long}\n"),
        "\n=\nSTATUS=x\r\nREADY=1\n".to_owned(),
    ] {
        let mut server = Handover::server(SocketKind::Tcp, &[]);
        let successor = FakeChild::successor_of(&mut server);
        for other in ["STATUS=not yet", "", "READY=0", "READY", "XREADY=1"] {
            successor.notify(other);
        }
        successor.notify(&words);
        let predecessor = server.serving();
        server.wait_for_successor();
        assert_eq!(server.serving(), successor.process);
        server.assert_handed_over(predecessor, 0);
        assert_taken_over_by_next(&mut server, &successor);
        server.stop();
    }
}

/// If the keeper understands nothing that the first child sends, the keeper ends.
#[test]
fn a_first_child_that_makes_no_sense_ends_the_keeper() {
    let mut child = Command::new("sh");
    // The child has no socket, so its end of the channel is descriptor 3.
    child.args(["-c", "echo nonsense >&3; echo listening on nothing >&2; exec sleep 60"]);
    let mut keeper = common::Program::start(keep(&["--patience", "300ms"], &child));
    assert_eq!(keeper.exit_code(), 1, "{keeper}");
    let log = keeper.log();
    let line = log.lines().find(|line| line.starts_with("smol-graceful: "));
    assert!(line.is_some_and(|line| line.contains("was not ready within 300ms")), "{log}");
}

// The parts of the tests above.

/// Restarts a server whose serving child is `child`, asserts that the next one serves, and ends
/// `child`.
fn assert_taken_over_by_next(server: &mut Handover, child: &FakeChild) {
    assert_eq!(server.serving(), child.process);
    server.take_over();
    assert_live(&mut server.connect());
    // A program without the channel has got TERM already.
    let _ = kill_process(child.process.0, Signal::KILL);
    server.servers.line_of_end(child.process);
}

/// Connects clients, each with a request, while the child is suspended.
fn clients_in_queue(keeper: &FakeKeeper) -> Vec<Client> {
    wait_until("the child is suspended", || keeper.child.process().is_suspended());
    let client = |_| {
        let mut client = keeper.connect();
        client.send(HEAD);
        client
    };
    (0..20).map(client).collect()
}
