//! A model of several generations of the server, whose processes die at any moment.
//!
//! The processes hold a real [`Outbox`] and send real [`Message`]s. The kernel's part and the rest
//! of the courier and of the adoption are small models. After each step the model looks for a
//! socket that two processes read, and for a socket that was lost although its reader lives (rules
//! H1 to H7). A run depends on its seed alone.

use std::cell::RefCell;
use std::fmt::Arguments;
use std::rc::{Rc, Weak};
use std::thread;
use std::time::Duration;

use super::*;
use crate::restart::message::{LONGEST, Message, Record};
use crate::seeded;

#[test]
fn one_process_reads_a_socket_and_none_is_lost_unless_its_reader_died() {
    let given = seeded::given();
    let first = given.unwrap_or_else(|| fastrand::u64(..));
    let runs = if cfg!(miri) { 20 } else { 3_000 };
    let mut seen = Seen::default();
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        let _printed = SeedOfFailure(seed);
        let mut world = World::new(seed, seen, given == Some(seed));
        for _ in 0..world.random.usize(20..200) {
            world.step();
            world.check();
        }
        world.settle();
        seen = world.seen;
    }
    // A case that no run reaches would prove nothing.
    let Seen { full, bytes, late, taken_back, refused, passed_on } = seen;
    let least = if given.is_some() || cfg!(miri) { 0 } else { 1 };
    for count in [full, bytes, late, taken_back, refused, passed_on] {
        assert!(count >= least, "the runs do not reach everything: {seen:?}");
    }
}

/// Prints the seed of a run that has failed. STRESS_SEED repeats that run, which then prints its
/// steps.
struct SeedOfFailure(u64);

impl Drop for SeedOfFailure {
    #[expect(clippy::print_stdout, reason = "the seed of a failure")]
    fn drop(&mut self) {
        if thread::panicking() {
            println!("STRESS_SEED={}", self.0);
        }
    }
}

/// The number of times that the runs have reached each of the rarer cases.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// Batches of [`BATCH`] connections, the largest number.
    full: usize,
    /// Batches that have room for a further connection, but not for its bytes.
    bytes: usize,
    /// Connections that went back to their server while a batch had no answer.
    late: usize,
    /// Batches that came back to the predecessor.
    taken_back: usize,
    /// Connections that a successor refused.
    refused: usize,
    /// Connections that came through a passage that was passed on.
    passed_on: usize,
}

// ── The kernel ──────────────────────────────────────────────────────────────────────────────────

/// A client's socket. Each `Rc` is a descriptor, so the socket is closed when the last `Rc` is
/// dropped.
struct Socket {
    id: usize,
    /// The successors have the listener to which the client came. If not, they refuse the socket.
    has_listener: bool,
    ahead: usize,
}

/// A descriptor that goes along with a message.
enum Descriptor {
    Socket(Rc<Socket>),
    Passage(End),
}

impl Descriptor {
    fn socket(self) -> Option<Rc<Socket>> {
        match self {
            Self::Socket(socket) => Some(socket),
            Self::Passage(_) => None,
        }
    }

    fn end(self) -> Option<End> {
        match self {
            Self::Passage(end) => Some(end),
            Self::Socket(_) => None,
        }
    }
}

struct Packet {
    bytes: Vec<u8>,
    descriptors: Vec<Descriptor>,
}

/// A passage: the unread messages at each of its two ends, and whether each end is open.
struct Queues {
    unread: [VecDeque<Packet>; 2],
    is_open: [bool; 2],
}

/// One end of a passage.
struct End {
    queues: Rc<RefCell<Queues>>,
    side: usize,
}

enum Received {
    Packet(Packet),
    Nothing,
    Closed,
}

impl End {
    fn pair() -> (Self, Self) {
        let queues = Queues { unread: Default::default(), is_open: [true; 2] };
        let queues = Rc::new(RefCell::new(queues));
        (Self { queues: queues.clone(), side: 0 }, Self { queues, side: 1 })
    }

    /// Sends a message with its descriptors. Returns `false`, and closes the descriptors, if the
    /// other end is closed.
    fn send(&self, message: &Message, descriptors: Vec<Descriptor>) -> bool {
        let bytes = message.encode();
        assert!(bytes.len() <= LONGEST);
        let mut queues = self.queues.borrow_mut();
        let is_open = queues.is_open[1 - self.side];
        if is_open {
            queues.unread[1 - self.side].push_back(Packet { bytes, descriptors });
        }
        is_open
    }

    /// Returns `true` if there is a message, or if the other end is closed.
    fn is_readable(&self) -> bool {
        let queues = self.queues.borrow();
        !queues.unread[self.side].is_empty() || !queues.is_open[1 - self.side]
    }

    fn receive(&self) -> Received {
        let mut queues = self.queues.borrow_mut();
        match queues.unread[self.side].pop_front() {
            Some(packet) => Received::Packet(packet),
            None if queues.is_open[1 - self.side] => Received::Nothing,
            None => Received::Closed,
        }
    }
}

impl Drop for End {
    /// Destroys the unread messages at this end. The other end can still read its own.
    fn drop(&mut self) {
        let mut queues = self.queues.borrow_mut();
        queues.is_open[self.side] = false;
        let unread = std::mem::take(&mut queues.unread[self.side]);
        // Drop the lock first, because other ends may be among the descriptors.
        drop(queues);
        drop(unread);
    }
}

// ── A process ───────────────────────────────────────────────────────────────────────────────────

/// A process that lives.
struct Process {
    /// The connections whose sockets the process reads.
    connections: Vec<Connection>,
    /// The largest number of connections.
    places: usize,
    /// The process has to stop, and has no successor.
    is_stopping: bool,
    /// The passages from which connections come.
    sources: Vec<End>,
    /// Set once there is a successor.
    courier: Option<Courier>,
}

struct Connection {
    socket: Rc<Socket>,
    /// The successor has refused the connection.
    is_refused: bool,
}

struct Courier {
    outbox: Outbox<Connection>,
    passage: End,
    /// The sockets that have to be in the outbox, in their order, with the bytes of each.
    expected: VecDeque<(usize, usize)>,
    /// The number of those that are in the batch without an answer.
    sent: usize,
    /// The number of the last batch.
    number: u32,
    /// The courier asks connections to leave. If not, the successor takes no more.
    asks: bool,
}

impl Carried for Connection {
    fn ahead(&self) -> usize {
        self.socket.ahead
    }
}

impl Process {
    fn new(places: usize, sources: Vec<End>) -> Self {
        Self { connections: Vec::new(), places, is_stopping: false, sources, courier: None }
    }

    /// Asks a connection to leave. Returns `false` if it does not leave.
    fn ask(&mut self, index: usize) -> bool {
        let Self { connections, courier: Some(courier), .. } = self else { return false };
        let may_leave = connections.get(index).is_some_and(|connection| !connection.is_refused);
        if courier.asks && may_leave {
            let connection = connections.remove(index);
            courier.expected.push_back((connection.socket.id, connection.socket.ahead));
            courier.outbox.push(connection);
            return true;
        }
        false
    }

    /// Asks one of the connections that can leave.
    fn ask_any(&mut self) -> bool {
        let can_leave = |connection: &Connection| !connection.is_refused;
        self.connections.iter().rposition(can_leave).is_some_and(|index| self.ask(index))
    }

    /// Makes a batch and sends it, unless the kernel is `congested`.
    fn deliver(&mut self, congested: bool, seen: &mut Seen) -> bool {
        let Some(courier) = &mut self.courier else { return false };
        let Courier { outbox, passage, expected, sent, number, .. } = courier;
        assert_eq!(outbox.waiting(), expected.len() - *sent);
        assert_eq!(outbox.sent() > 0, *sent > 0);
        let Some((now, batch)) = outbox.next_batch() else {
            assert!(*sent > 0 || expected.is_empty(), "connections wait, and there is no batch");
            return false;
        };
        assert_eq!(*sent, 0, "a batch was sent, and the one before it is not answered");
        assert_eq!(now, number.wrapping_add(1), "batches are numbered one after the other");
        *number = now;
        // The batch has the connections that have waited longest, as many as fit.
        let ids: Vec<_> = batch.iter().map(|connection| connection.socket.id).collect();
        let (first, others) = expected.as_slices();
        let expected_ids = first.iter().chain(others).take(ids.len()).map(|(id, _)| *id);
        assert_eq!(ids, expected_ids.collect::<Vec<_>>());
        let bytes: usize = batch.iter().map(Carried::ahead).sum();
        assert!(ids.len() <= BATCH && bytes <= Limits::MOST_AHEAD);
        let has_room = |(_, ahead): &(usize, usize)| bytes + ahead <= Limits::MOST_AHEAD;
        if ids.len() == BATCH {
            seen.full += 1;
        } else if let Some(next) = expected.get(ids.len()) {
            assert!(!has_room(next), "a further connection would fit");
            seen.bytes += 1;
        }

        let connections = batch.iter().map(|connection| Record {
            listener: connection.socket.has_listener.into(),
            idle: Duration::ZERO,
            ahead: vec![b'x'; connection.socket.ahead],
        });
        let message = Message::Connections { number: now, connections: connections.collect() };
        let sockets = batch.iter().map(|connection| Descriptor::Socket(connection.socket.clone()));
        *sent = ids.len();
        let descriptors = sockets.collect();
        if congested {
            self.take_back(seen);
        } else if !passage.send(&message, descriptors) {
            self.take_back(seen);
            self.stop_asking();
        }
        true
    }

    /// Applies an answer, if there is one.
    fn hear(&mut self, seen: &mut Seen) -> bool {
        let Some(courier) = &mut self.courier else { return false };
        let packet = match courier.passage.receive() {
            Received::Nothing => return false,
            Received::Packet(packet) => packet,
            Received::Closed => {
                let is_news = courier.asks || courier.sent > 0;
                self.take_back(seen);
                self.stop_asking();
                return is_news;
            }
        };
        let Some(Message::Taken(answer)) = Message::decode(&packet.bytes) else {
            panic!("an answer was sent");
        };
        let Courier { outbox, expected, sent, number, .. } = courier;
        let count = usize::from(answer.count);
        let Some(Settled { taken, refused }) = outbox.settle(answer) else {
            let is_wrong = answer.number != *number || *sent == 0 || count > *sent;
            assert!(is_wrong, "an answer is not taken");
            // Both processes keep the batch.
            self.stop_asking();
            return true;
        };
        let is_right = answer.number == *number && *sent > 0 && count <= *sent;
        assert!(is_right, "a wrong answer is taken");
        let mut ids = expected.drain(..(count + 1).min(*sent)).map(|(id, _)| id);
        let taken_ids: Vec<_> = taken.iter().map(|connection| connection.socket.id).collect();
        assert_eq!(taken_ids, ids.by_ref().take(count).collect::<Vec<_>>());
        assert_eq!(refused.as_ref().map(|connection| connection.socket.id), ids.next());
        drop(ids);
        *sent = 0;
        if let Some(refused) = refused {
            self.connections.push(Connection { is_refused: true, ..refused });
            seen.refused += 1;
        }
        if !answer.takes_more || !courier.asks {
            self.stop_asking();
        }
        true
    }

    fn take_back(&mut self, seen: &mut Seen) {
        if let Some(courier) = &mut self.courier {
            courier.outbox.take_back();
            seen.taken_back += courier.sent.min(1);
            courier.sent = 0;
        }
    }

    fn stop_asking(&mut self) {
        if let Some(courier) = &mut self.courier {
            courier.asks = false;
        }
        self.serve_waiting();
    }

    /// Serves the waiting connections in this process again. Returns their number.
    fn serve_waiting(&mut self) -> usize {
        let Some(Courier { outbox, expected, sent, .. }) = &mut self.courier else { return 0 };
        let back: Vec<_> = outbox.remove_waiting().collect();
        let ids = back.iter().map(|connection| connection.socket.id);
        assert!(ids.eq(expected.drain(*sent..).map(|(id, _)| id)), "not those that wait");
        let count = back.len();
        self.connections.extend(back);
        count
    }

    /// Gives up all connections on their way, because the grace is over.
    fn abandon(&mut self) {
        let Some(Courier { outbox, expected, sent, .. }) = &mut self.courier else { return };
        let batch: Vec<_> = outbox.remove_sent().map(|connection| connection.socket.id).collect();
        assert!(expected.drain(..*sent).map(|(id, _)| id).eq(batch), "not the batch");
        *sent = 0;
        self.serve_waiting();
    }

    fn is_full(&self) -> bool {
        let on_their_way = self.courier.as_ref().map_or(0, |courier| courier.expected.len());
        self.connections.len() + on_their_way >= self.places
    }
}

// ── The world ───────────────────────────────────────────────────────────────────────────────────

struct World {
    random: fastrand::Rng,
    /// The generations, from the first on. A dead process is `None`.
    processes: Vec<Option<Process>>,
    clients: Vec<Client>,
    /// The number of deaths in 1,000 occasions.
    mortality: u32,
    /// No fault happens any more.
    is_calm: bool,
    prints_steps: bool,
    seen: Seen,
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
    fn new(seed: u64, seen: Seen, prints_steps: bool) -> Self {
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
    fn step(&mut self) {
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
    fn check(&self) {
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
    fn settle(&mut self) {
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
