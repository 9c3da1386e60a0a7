//! The world of the model: the generations of the server, their clients, and the choice of the next
//! step.
//!
//! Invariant: after each step, one living process reads each socket, unless the reader of that
//! socket has died or has closed the socket. The seed alone decides each step.

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::rc::{Rc, Weak};

use super::super::Outbox;
use super::Seen;
use super::kernel::{Descriptor, End, Received, Socket};
use super::process::{Connection, Courier, Process};
use crate::limits::Limits;
use crate::restart::message::{Message, Record, Taken};

pub(super) struct World {
    pub(super) random: fastrand::Rng,
    /// The generations, from the first on. A dead process is `None`.
    processes: Vec<Option<Process>>,
    clients: Vec<Client>,
    /// The number of deaths in 1,000 occasions.
    mortality: u32,
    /// No fault happens any more.
    is_calm: bool,
    prints_steps: bool,
    pub(super) seen: Seen,
}

/// A client's socket as the model sees it.
struct Client {
    socket: Weak<Socket>,
    /// The process that may read the socket. It has accepted the socket, or has been the last to
    /// answer that it took the socket.
    owner: usize,
    /// The owner has closed the socket.
    is_closed: bool,
}

/// The fate of a process.
#[derive(PartialEq, Eq)]
enum Fate {
    Lives,
    Dies,
}

impl World {
    pub(super) fn new(seed: u64, seen: Seen, prints_steps: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mortality = [0, 2, 10, 50][random.usize(..4)];
        let mut world = Self {
            random,
            processes: Vec::new(),
            clients: Vec::new(),
            mortality,
            is_calm: false,
            prints_steps,
            seen,
        };
        // Most runs have few connections, because they are quicker.
        let crowd = if world.chance(20) { world.random.usize(200..900) } else { 12 };
        let mut first = Process::new(usize::MAX, Vec::new());
        for _ in 0..world.random.usize(..=crowd) {
            world.connect(0, &mut first);
        }
        world.processes.push(Some(first));
        world
    }

    /// Returns `true` in `of_1000` of 1,000 calls, and never while the world settles.
    fn chance(&mut self, of_1000: u32) -> bool {
        !self.is_calm && self.random.u32(..1000) < of_1000
    }

    fn dies(&mut self) -> bool {
        self.chance(self.mortality)
    }

    #[expect(clippy::print_stdout, reason = "the steps of a failure")]
    fn tell(&self, process: usize, step: Arguments<'_>) {
        if self.prints_steps {
            println!("process {process} {step}");
        }
    }

    /// Lets a random process do something.
    pub(super) fn step(&mut self) {
        let id = self.random.usize(..self.processes.len());
        let Some(mut process) = self.processes[id].take() else { return };
        let fate = self.act(id, &mut process);
        if fate == Fate::Dies || self.dies() {
            self.tell(id, format_args!("dies"));
        } else {
            self.processes[id] = Some(process);
        }
    }

    fn act(&mut self, id: usize, process: &mut Process) -> Fate {
        let is_newest = id + 1 == self.processes.len();
        match self.random.u32(..100) {
            0..25 => {
                // The courier asks all at once, or a few.
                let most = if self.random.bool() { process.connections.len() } else { 3 };
                for _ in 0..most {
                    let index = self.random.usize(..=process.connections.len());
                    process.ask(index);
                }
                self.tell(id, format_args!("asks {most} connections"));
            }
            25..45 => {
                let congested = self.chance(50);
                if process.deliver(congested, &mut self.seen) {
                    self.tell(id, format_args!("makes a batch, congested: {congested}"));
                }
            }
            45..60 => {
                let is_news = process.hear(&mut self.seen);
                self.tell(id, format_args!("looks for an answer, and there is one: {is_news}"));
            }
            60..80 => return self.adopt_next(id, process),
            80..84 => {
                let count = process.serve_waiting();
                self.seen.late += count;
                self.tell(id, format_args!("serves {count} connections again"));
            }
            84..88 if process.courier.is_none() && !process.is_full() => {
                self.connect(id, process);
            }
            88..91 if !process.connections.is_empty() => {
                let index = self.random.usize(..process.connections.len());
                let connection = process.connections.swap_remove(index);
                self.clients[connection.socket.id].is_closed = true;
                self.tell(id, format_args!("closes {}", connection.socket.id));
            }
            91..97 if is_newest && !process.is_stopping && self.processes.len() < 4 => {
                self.succeed(id, process);
            }
            97 if self.chance(200) && process.courier.is_some() => {
                self.tell(id, format_args!("gives up waiting for the answer"));
                process.stop_asking();
            }
            98 if self.chance(200) => {
                self.tell(id, format_args!("is told to stop"));
                process.is_stopping = process.courier.is_none();
            }
            99 if self.chance(100) => {
                process.abandon();
                return Fate::Dies;
            }
            _ => {}
        }
        Fate::Lives
    }

    /// Lets a client connect to a process.
    fn connect(&mut self, owner: usize, process: &mut Process) {
        // In a crowd, few connections have bytes read ahead, because otherwise no batch would be
        // full.
        let ahead = match self.random.usize(..20.max(self.clients.len() * 4)) {
            0 => self.random.usize(..=Limits::MOST_AHEAD),
            1 => Limits::MOST_AHEAD - self.random.usize(..3),
            2..5 => self.random.usize(..100),
            _ => 0,
        };
        let has_listener = self.random.u32(..10) > 0;
        let socket = Rc::new(Socket { id: self.clients.len(), has_listener, ahead });
        self.tell(owner, format_args!("accepts {}", socket.id));
        let known = Client { socket: Rc::downgrade(&socket), owner, is_closed: false };
        self.clients.push(known);
        process.connections.push(Connection { socket, is_refused: false });
    }

    /// Starts a successor, and passes it the passages from which connections come.
    fn succeed(&mut self, id: usize, process: &mut Process) {
        let (passage, theirs) = End::pair();
        for end in process.sources.drain(..) {
            assert!(passage.send(&Message::Pass, vec![Descriptor::Passage(end)]));
        }
        let mut outbox = Outbox::new();
        // The number may begin anew at 0.
        let number = if self.random.bool() { 0 } else { u32::MAX - self.random.u32(..3) };
        outbox.number = number;
        process.courier = Some(Courier {
            outbox,
            passage,
            expected: VecDeque::new(),
            sent: 0,
            number,
            asks: true,
        });
        let places = if self.random.bool() { usize::MAX } else { self.random.usize(..20) };
        self.processes.push(Some(Process::new(places, vec![theirs])));
        self.tell(id, format_args!("has a successor with {places} places"));
    }

    /// Receives the next message from one of the passages.
    fn adopt_next(&mut self, id: usize, process: &mut Process) -> Fate {
        if process.sources.is_empty() {
            return Fate::Lives;
        }
        let index = self.random.usize(..process.sources.len());
        let packet = match process.sources[index].receive() {
            Received::Nothing => return Fate::Lives,
            Received::Packet(packet) => packet,
            Received::Closed => {
                process.sources.remove(index);
                return Fate::Lives;
            }
        };
        if self.dies() {
            self.tell(id, format_args!("has received a batch"));
            return Fate::Dies;
        }
        if self.chance(10) {
            self.tell(id, format_args!("cannot read a message, and closes the passage"));
            process.sources.remove(index);
            return Fate::Lives;
        }
        match Message::decode(&packet.bytes) {
            Some(Message::Pass) => {
                self.tell(id, format_args!("gets a passage"));
                process.sources.extend(packet.descriptors.into_iter().filter_map(Descriptor::end));
                Fate::Lives
            }
            Some(Message::Connections { number, connections }) => {
                let sockets = packet.descriptors.into_iter().filter_map(Descriptor::socket);
                let mut sockets: Vec<_> = sockets.collect();
                assert_eq!(sockets.len(), connections.len());
                if self.chance(20) {
                    // The process has too few free descriptors, so the kernel closes the others.
                    sockets.truncate(self.random.usize(..=connections.len()));
                }
                self.adopt(id, process, index, number, &connections, sockets)
            }
            _ => panic!("no such message was sent"),
        }
    }

    /// Takes the connections of a batch, in their order, and answers.
    fn adopt(
        &mut self,
        id: usize,
        process: &mut Process,
        index: usize,
        number: u32,
        records: &[Record],
        sockets: Vec<Rc<Socket>>,
    ) -> Fate {
        if self.chance(20) {
            // A wrong answer comes before the right one.
            let (answer, count) = match self.random.u32(..3) {
                0 => (number.wrapping_sub(1), self.random.usize(..=records.len())),
                1 => (number.wrapping_add(1), self.random.usize(..=records.len())),
                _ => (number, records.len() + 1),
            };
            self.answer(id, process, index, answer, count, true);
        }
        let mut takes_more = sockets.len() == records.len();
        let mut taken = Vec::new();
        for (record, socket) in records.iter().zip(sockets) {
            assert_eq!(record.ahead.len(), socket.ahead);
            if process.is_stopping || process.is_full() {
                takes_more = false;
                break;
            }
            if record.listener == 0 {
                takes_more = true;
                break;
            }
            taken.push(socket.id);
            process.connections.push(Connection { socket, is_refused: false });
        }
        // No process reads before the answer, so a death in this moment is not the death of a
        // reader.
        if self.dies() {
            return Fate::Dies;
        }
        let answered = self.answer(id, process, index, number, taken.len(), takes_more);
        if self.chance(10) {
            // The second answer belongs to a batch that has its answer already.
            self.answer(id, process, index, number, 0, true);
        }
        for client in taken {
            let owner = self.clients[client].owner;
            let is_dead = self.processes[owner].is_none();
            assert!(answered || is_dead, "{client} is read here, and process {owner} lives");
            if owner + 1 != id {
                self.seen.passed_on += 1;
            }
            self.clients[client].owner = id;
        }
        if !answered {
            process.sources.remove(index);
        }
        Fate::Lives
    }

    fn answer(
        &self,
        id: usize,
        process: &Process,
        index: usize,
        number: u32,
        count: usize,
        takes_more: bool,
    ) -> bool {
        let count = u16::try_from(count).unwrap();
        self.tell(id, format_args!("answers batch {number}: {count}, takes more: {takes_more}"));
        let answer = Message::Taken(Taken { number, count, takes_more });
        process.sources[index].send(&answer, Vec::new())
    }

    /// Checks every socket after each step.
    pub(super) fn check(&self) {
        let mut reader = vec![None; self.clients.len()];
        for (id, process) in self.processes.iter().enumerate() {
            for connection in process.iter().flat_map(|process| &process.connections) {
                let client = connection.socket.id;
                let before = reader[client].replace(id);
                assert_eq!(before, None, "{client} is read by process {id}, too");
                let owner = self.clients[client].owner;
                assert_eq!(id, owner, "{client} is read by a process to which it was not given");
            }
        }
        for (id, client) in self.clients.iter().enumerate() {
            let &Client { ref socket, owner, is_closed } = client;
            let is_lost = socket.strong_count() == 0 && !is_closed;
            let is_dead = self.processes[owner].is_none();
            assert!(!is_lost || is_dead, "{id} is lost, and process {owner} lives");
            if self.is_calm {
                // A close reaches the client, because no dead process keeps a descriptor.
                let copies = usize::from(reader[id].is_some());
                assert_eq!(socket.strong_count(), copies, "the descriptors of {id}");
                let is_read = reader[id].is_some();
                assert_eq!(is_read, !is_closed && !is_dead, "{id}, of process {owner}");
            }
        }
    }

    /// Lets every process finish its work, without a fault.
    pub(super) fn settle(&mut self) {
        self.is_calm = true;
        let mut is_moving = true;
        while is_moving {
            is_moving = false;
            for id in 0..self.processes.len() {
                let Some(mut process) = self.processes[id].take() else { continue };
                while process.sources.iter().any(End::is_readable) {
                    let _ = self.adopt_next(id, &mut process);
                    is_moving = true;
                }
                is_moving |= process.hear(&mut self.seen);
                while process.ask_any() {
                    is_moving = true;
                }
                is_moving |= process.deliver(false, &mut self.seen);
                self.processes[id] = Some(process);
            }
        }
        let couriers = self.processes.iter().flatten().filter_map(|one| one.courier.as_ref());
        for courier in couriers {
            assert!(courier.expected.is_empty(), "a connection is on its way for ever");
        }
        self.check();
    }
}
