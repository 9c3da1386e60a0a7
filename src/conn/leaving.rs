//! [`Leaving`]: a connection on its way to the successor, or to another task of this process.
//!
//! Invariant: this process counts the connection until the successor says that it has taken the
//! connection (rule H4), and nobody reads the socket meanwhile (rule H1). Sends nothing to the
//! successor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;

use crate::places::Place;
use crate::stop::activity::Doing;
use crate::stop::latch::Entry;
use crate::stop::orders::Departure;
use crate::stop::seat::Seat;
use crate::stream::transport::Transport;
use crate::wire::Movable;
use crate::wire::head::has_begun;

/// A counted connection. While this value exists, the drain waits for the connection, and the
/// connection keeps its place.
pub(crate) struct Counted {
    pub(crate) seat: Arc<Seat>,
    pub(crate) _entry: Entry,
    /// `None` if the server has accepted the connection without a place, to empty a queue (rule
    /// S4).
    pub(crate) _place: Option<Place>,
}

/// A connection whose socket nobody reads.
pub(crate) struct Leaving {
    /// The socket, which is not registered for events.
    pub(crate) socket: OwnedFd,
    /// The bytes that were read from the socket and not answered.
    pub(crate) ahead: Vec<u8>,
    idle_since: Instant,
    /// Dropped last, so that the connection counts until its socket is closed.
    pub(crate) counted: Counted,
}

impl Leaving {
    /// Takes a connection out of its task.
    ///
    /// # Errors
    ///
    /// Returns `Unsupported` if the transport is not a plain socket, and otherwise what the
    /// operating system says.
    pub(crate) fn new(connection: Movable, counted: Counted) -> io::Result<Self> {
        let Movable { transport: Transport::Plain(socket), ahead } = connection else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let socket = socket.into_fd()?;
        let idle_since = counted.seat.set_out();
        Ok(Self { socket, ahead, idle_since, counted })
    }

    /// Returns how long the connection has been idle (rule H8).
    pub(crate) fn idle_for(&self) -> Duration {
        self.idle_since.elapsed()
    }

    /// Gives the connection back to the server.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says.
    pub(crate) fn give_back(self, departure: Departure) -> io::Result<(Movable, Counted)> {
        let Self { socket, ahead, idle_since, counted } = self;
        counted.seat.set_departure(departure);
        counted.seat.come_back(idle_since, has_begun(&ahead));
        Ok((Movable { transport: Transport::of(socket)?.0, ahead }, counted))
    }

    /// Gives the connection up, because its socket belongs to the successor, or because the server
    /// aborts. At an abort, the outcome names a connection that holds a request as cut (rule S13).
    pub(crate) fn abandon(self) {
        let holds_request =
            has_begun(&self.ahead) || ioctl_fionread(&self.socket).is_ok_and(|waiting| waiting > 0);
        if !holds_request {
            // The outcome leaves out idle connections.
            self.counted.seat.activity.begin(Doing::Idle);
        }
    }
}
