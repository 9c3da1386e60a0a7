//! All connections of the load, polled without a pause, and the figures of a window of time.
//!
//! Invariant: the thread never sleeps, because each wait has a timeout of zero. A window counts the
//! requests that are answered within it. Requests without an answer at its end continue in the next
//! window. The run fails if the server answers no request for five seconds.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::client::{Client, Progress};
use crate::request::Request;

/// The longest time that a server may take without any answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest number of newcomers that may wait at a time.
const MOST_NEWCOMERS: usize = 1000;

pub struct Settings {
    pub address: SocketAddr,
    pub connections: usize,
    pub request: Request,
    /// The pause of a connection after each response.
    pub pause: Option<Duration>,
    /// The interval between newcomers, which are clients that connect, send one request and close.
    pub newcomers: Option<Duration>,
}

pub struct Load {
    settings: Settings,
    poll: OwnedFd,
    /// The lasting connections, followed by the newcomers.
    clients: Vec<Option<Client>>,
    /// Places of newcomers that have left.
    free: Vec<usize>,
    /// The clients that pause, with the end of each pause, in the order of time.
    paused: VecDeque<(Instant, usize)>,
    next_newcomer: Instant,
    buffer: Vec<u8>,
    events: Vec<Event>,
    figures: Figures,
    /// The time at which the server last sent data.
    last_event: Instant,
    /// `true` while the connections are opened, when each of them sends one request.
    is_opening: bool,
}

#[derive(Default)]
struct Figures {
    latencies: Vec<Duration>,
    newcomers: Vec<Duration>,
}

impl Load {
    /// Connects, and returns when each connection has received a response.
    pub fn open(settings: Settings) -> io::Result<Self> {
        let now = Instant::now();
        let mut load = Self {
            poll: epoll::create(CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            free: Vec::new(),
            paused: VecDeque::new(),
            next_newcomer: now,
            buffer: vec![0; 256 * 1024],
            events: Vec::with_capacity(256),
            figures: Figures::default(),
            last_event: now,
            is_opening: true,
            settings,
        };
        // The clients connect one by one, because the queue of the listener is not measured.
        for place in 0..load.settings.connections {
            load.connect(place)?;
            load.last_event = Instant::now();
            load.ask(place)?;
            while load.figures.latencies.len() == place {
                load.look()?;
            }
        }
        load.is_opening = false;
        load.paused = (0..load.settings.connections).map(|place| (now, place)).collect();
        Ok(load)
    }

    /// Loads the server for this duration, and returns the figures as a line of JSON.
    pub fn run(&mut self, duration: Duration) -> io::Result<String> {
        let began = Instant::now();
        let bytes = self.bytes();
        self.figures = Figures::default();
        (self.last_event, self.next_newcomer) = (began, began);
        let mut now = began;
        while now - began < duration {
            self.ask_due(now)?;
            self.admit(now)?;
            self.look()?;
            now = Instant::now();
        }
        let bytes = self.bytes() - bytes;
        let Figures { latencies, newcomers } = &mut self.figures;
        Ok(format!(
            r#"{{"requests": {}, "seconds": {}, "bytes": {bytes}, "p50": {}, "p99": {}, {}}}"#,
            latencies.len(),
            (now - began).as_secs_f64(),
            quantile(latencies, 0.5),
            quantile(latencies, 0.99),
            format_args!(
                r#""newcomers": {}, "newcomer_p50": {}, "newcomer_p99": {}"#,
                newcomers.len(),
                quantile(newcomers, 0.5),
                quantile(newcomers, 0.99),
            ),
        ))
    }

    /// Returns the number of bytes of bodies on the lasting connections so far.
    fn bytes(&self) -> u64 {
        let lasting = self.clients.iter().take(self.settings.connections);
        lasting.flatten().map(|client| client.bytes).sum()
    }

    /// Sends a request on each client whose pause is over.
    fn ask_due(&mut self, now: Instant) -> io::Result<()> {
        while let Some(&(due, place)) = self.paused.front() {
            if due > now {
                break;
            }
            self.paused.pop_front();
            self.ask(place)?;
        }
        Ok(())
    }

    /// Connects a newcomer, if it is time for one.
    fn admit(&mut self, now: Instant) -> io::Result<()> {
        let Some(interval) = self.settings.newcomers else { return Ok(()) };
        if now < self.next_newcomer {
            return Ok(());
        }
        self.next_newcomer = now + interval;
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.clients.len() < self.settings.connections + MOST_NEWCOMERS => {
                self.clients.len()
            }
            None => return Err(late("newcomers are not answered")),
        };
        // The wait of a newcomer includes the time that it takes to connect.
        let began = Instant::now();
        self.connect(place)?;
        self.ask(place)?;
        if let Some(client) = &mut self.clients[place] {
            client.asked = began;
        }
        Ok(())
    }

    fn connect(&mut self, place: usize) -> io::Result<()> {
        let client = Client::connect(self.settings.address)?;
        epoll::add(&self.poll, &client.stream, EventData::new_u64(place as u64), EventFlags::IN)?;
        match self.clients.get_mut(place) {
            Some(free) => *free = Some(client),
            None => self.clients.push(Some(client)),
        }
        Ok(())
    }

    fn ask(&mut self, place: usize) -> io::Result<()> {
        let Some(client) = &mut self.clients[place] else { return Ok(()) };
        if client.ask(&self.settings.request)? == Progress::Sending {
            self.wait_for(place, EventFlags::OUT)?;
        }
        Ok(())
    }

    /// Polls all sockets once, and continues with those that are ready.
    fn look(&mut self) -> io::Result<()> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.events.clear();
        epoll::wait(&self.poll, spare_capacity(&mut self.events), Some(&AT_ONCE))?;
        let now = Instant::now();
        if !self.events.is_empty() {
            self.last_event = now;
        } else if now - self.last_event > PATIENCE {
            return Err(late("the server does not answer"));
        }
        for number in 0..self.events.len() {
            let Event { flags, data } = self.events[number];
            let place = data.u64() as usize;
            let Some(client) = &mut self.clients[place] else { continue };
            let progress = client.go_on(&self.settings.request, &mut self.buffer)?;
            if flags.contains(EventFlags::OUT) && progress != Progress::Sending {
                self.wait_for(place, EventFlags::IN)?;
            }
            if progress == Progress::Answered {
                self.answered(place)?;
            }
        }
        Ok(())
    }

    /// Counts a response. After it, the client sends its next request, pauses or closes.
    fn answered(&mut self, place: usize) -> io::Result<()> {
        let Some(client) = &mut self.clients[place] else { return Ok(()) };
        let now = Instant::now();
        let took = now - client.asked;
        if place >= self.settings.connections {
            self.figures.newcomers.push(took);
            self.clients[place] = None;
            self.free.push(place);
            return Ok(());
        }
        self.figures.latencies.push(took);
        match self.settings.pause {
            _ if self.is_opening => Ok(()),
            Some(pause) => {
                self.paused.push_back((now + pause, place));
                Ok(())
            }
            None => self.ask(place),
        }
    }

    /// Tells the kernel which events this client waits for.
    fn wait_for(&mut self, place: usize, flags: EventFlags) -> io::Result<()> {
        if let Some(client) = &self.clients[place] {
            epoll::modify(&self.poll, &client.stream, EventData::new_u64(place as u64), flags)?;
        }
        Ok(())
    }
}

/// Returns a quantile in seconds, or 0 if there are no samples.
fn quantile(samples: &mut [Duration], part: f64) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    let index = ((samples.len() - 1) as f64 * part).round() as usize;
    samples.select_nth_unstable(index).1.as_secs_f64()
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::quantile;

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let mut samples: Vec<_> = (1..=100).rev().map(Duration::from_secs).collect();
        assert_eq!(quantile(&mut samples, 0.0), 1.0);
        assert_eq!(quantile(&mut samples, 0.99), 99.0);
        assert_eq!(quantile(&mut samples, 1.0), 100.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
