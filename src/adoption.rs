//! [`Adoption`]: takes the connections that predecessors hand over.
//!
//! Invariant: this process registers and counts a connection, then answers that it has taken the
//! connection, and only then reads (rule H1). Nothing is awaited between the receipt of a batch and
//! the answer, so every batch that was received is answered. This file asks no connection to leave.

use std::future::{Future, poll_fn};
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures_lite::FutureExt;
use futures_lite::future::yield_now;

use crate::conn::leaving::Counted;
use crate::error::reason;
use crate::listen::listener::Listener;
use crate::restart::channel::{Channel, is_gone};
use crate::restart::message::{Message, Record, Taken};
use crate::server::running::Running;
use crate::stop::outcome::count_of;
use crate::stop::phase::Phase;
use crate::stream::transport::Transport;
use crate::wire::Movable;
use crate::wire::head::has_begun;

/// The passages from which connections come to the servers of this process.
pub(crate) struct Adoption {
    predecessors: Vec<Predecessor>,
    /// Returns the servers of this process.
    servers: fn() -> Vec<Arc<Running>>,
}

/// A process that hands over its connections.
struct Predecessor {
    passage: Channel,
    /// The number of connections that were taken from this process.
    taken: usize,
    /// `true` if a connection was refused, and the log has said so.
    was_refused: bool,
}

/// The reach of a refusal.
enum Refusal {
    /// Only this connection is refused.
    This,
    /// Every further connection would be refused, too.
    All,
}

impl Adoption {
    pub(crate) fn new(servers: fn() -> Vec<Arc<Running>>) -> Self {
        Self { predecessors: Vec::new(), servers }
    }

    /// Takes connections from one more passage.
    pub(crate) fn add(&mut self, passage: Channel) {
        self.predecessors.push(Predecessor { passage, taken: 0, was_refused: false });
    }

    /// Takes connections until `end` is ready. Returns the result of `end`.
    pub(crate) async fn until<T>(&mut self, end: impl Future<Output = T>) -> T {
        let adopt = async {
            loop {
                self.adopt_next().await;
                // A flood of batches must not keep the rest of this thread from its turn.
                yield_now().await;
            }
        };
        end.or(adopt).await
    }

    /// Ends the adoption. Returns the passages that are still open.
    pub(crate) fn end(&mut self) -> Vec<Channel> {
        let predecessors = self.predecessors.drain(..);
        predecessors.inspect(Predecessor::log).map(|predecessor| predecessor.passage).collect()
    }

    /// Receives the next message of any predecessor, and acts on it.
    async fn adopt_next(&mut self) {
        let (index, received) = poll_fn(|cx| {
            for (index, predecessor) in self.predecessors.iter().enumerate() {
                if let Poll::Ready(received) = predecessor.passage.poll_receive(cx) {
                    return Poll::Ready((index, received));
                }
            }
            Poll::Pending
        })
        .await;
        match received {
            Ok(Some((Message::Connections { number, connections }, sockets))) => {
                self.adopt(index, number, connections, sockets);
            }
            Ok(Some((Message::Pass, sockets))) => {
                let passages = sockets.into_iter().filter_map(|end| Channel::of(end).ok());
                passages.for_each(|passage| self.add(passage));
            }
            Ok(None) => self.remove(index, None),
            Ok(Some(_)) => self.remove(index, Some("it has sent something else")),
            Err(error) => self.remove(index, Some(&reason(&error))),
        }
    }

    /// Takes as many connections of a batch as there are places and descriptors for, in their order
    /// (rule H7), and answers.
    fn adopt(
        &mut self,
        index: usize,
        number: u32,
        connections: Vec<Record>,
        sockets: Vec<OwnedFd>,
    ) {
        let servers = (self.servers)();
        let (taken, refusal) = take_batch(&servers, connections, sockets);
        if let Some(Refusal::This) = refusal {
            self.predecessors[index].log_refusal();
        }
        let answer = Message::Taken(Taken {
            number,
            count: u16::try_from(taken.len()).unwrap_or(u16::MAX),
            takes_more: !matches!(refusal, Some(Refusal::All)),
        });
        let answered = self.predecessors[index].passage.send(&answer, &[]);
        if let Some(error) = answered.as_ref().err().filter(|error| !is_gone(error)) {
            // No process has read these connections, so the predecessor takes them back when the
            // passage closes.
            drop(taken);
            return self.remove(index, Some(&reason(error)));
        }
        self.predecessors[index].taken += taken.len();
        for Adopted { running, connection, counted } in taken {
            running.go_on(connection, counted);
        }
        if answered.is_err() {
            // The predecessor has ended, so the sockets are this process's (rule H2).
            self.remove(index, None);
        }
    }

    /// Removes a predecessor. Logs `failure` if the predecessor has not closed the passage itself.
    fn remove(&mut self, index: usize, failure: Option<&str>) {
        self.predecessors.remove(index).log();
        if let Some(failure) = failure {
            log::warn!("the predecessor hands over no more connections: {failure}");
        }
    }
}

/// A connection that is registered and counted, and that no task reads yet.
struct Adopted<'a> {
    running: &'a Running,
    connection: Movable,
    counted: Counted,
}

/// Takes connections of a batch in their order. Returns the connections that were taken, and the
/// reason why the next one was refused, if there is one.
fn take_batch(
    servers: &[Arc<Running>],
    connections: Vec<Record>,
    sockets: Vec<OwnedFd>,
) -> (Vec<Adopted<'_>>, Option<Refusal>) {
    // If sockets are missing, this process had no descriptors for them.
    let missing = (sockets.len() < connections.len()).then_some(Refusal::All);
    let mut taken = Vec::new();
    for (record, socket) in connections.into_iter().zip(sockets) {
        match take(servers, record, socket) {
            Ok(connection) => taken.push(connection),
            Err(refusal) => return (taken, Some(refusal)),
        }
    }
    (taken, missing)
}

/// Registers and counts a connection.
fn take(servers: &[Arc<Running>], record: Record, socket: OwnedFd) -> Result<Adopted<'_>, Refusal> {
    let Record { listener, idle, ahead } = record;
    let takes = |own: &&Listener| own.can_move_connections() && own.number() == Some(listener);
    let known = servers.iter().find_map(|running| {
        let listener = running.listeners.iter().find(takes)?;
        Some((running, listener))
    });
    let (running, listener) = known.ok_or(Refusal::This)?;
    if running.service.shutdown.phase() > Phase::Running {
        return Err(Refusal::All);
    }
    let place = running.places.try_take().ok_or(Refusal::All)?;
    let (transport, peer) = Transport::of(socket).map_err(|_| Refusal::This)?;
    let now = Instant::now();
    let since = now.checked_sub(idle).unwrap_or(now);
    let seat = running.seat(listener, peer, since);
    seat.come_back(since, has_begun(&ahead));
    let counted = running.count(&seat, Some(place)).ok_or(Refusal::All)?;
    Ok(Adopted { running, connection: Movable { transport, ahead }, counted })
}

impl Predecessor {
    /// Logs that a connection was refused. Further refusals of this predecessor are not logged.
    fn log_refusal(&mut self) {
        if !mem::replace(&mut self.was_refused, true) {
            log::warn!(
                "a connection stays with the predecessor: its listener is none of this process's, \
                 or no events can be had for its socket"
            );
        }
    }

    fn log(&self) {
        if self.taken > 0 {
            let connections = count_of(self.taken as u64, "connection");
            log::info!("took over {connections} of the predecessor");
        }
    }
}
