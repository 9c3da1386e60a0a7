//! [`Notify`]: tells the service manager the state of the server (systemd's protocol over
//! NOTIFY_SOCKET). The manager of a keeper's child is its keeper.
//!
//! Invariant: the server never waits for the manager, and drops a message that the manager does not
//! take at once (rule S21). Without a NOTIFY_SOCKET, this file does nothing. READY=1 goes alone in
//! a datagram, and every STATUS is bounded, because a manager reads at most 4096 bytes.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Once};
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::{SockAddr, SockRef};

use crate::error::reason;
use crate::stop::draining::Draining;

/// The environment variable that names the service manager's socket.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";

/// The service manager, if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notify(Option<Arc<NotifySocket>>);

impl Notify {
    /// Finds the socket that the environment names.
    pub(crate) fn from_env() -> Self {
        Self(NotifySocket::from_env().map(Arc::new))
    }

    /// Tells the manager that this process serves.
    ///
    /// # Errors
    ///
    /// Returns `WouldBlock` if the manager takes no message now.
    pub(crate) fn ready(&self) -> io::Result<()> {
        let Some(manager) = &self.0 else { return Ok(()) };
        match manager.send(&[NotifyState::Ready]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // The manager is gone, so another try would not help.
            Err(error) => log::warn!(
                "READY=1 did not reach {SOCKET}, so the program that has set it may take this process \
                 for one that has not started: {}",
                reason(&error)
            ),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Sends the manager a line to show.
    pub(crate) fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&bounded(status))]);
    }

    /// Tells the manager that the stop has begun.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// Tells the manager for how long the server still accepts connections.
    pub(crate) fn lame_duck(&self, duration: Duration) {
        let status = format!("lame duck: accepting connections for another {duration:?}");
        self.tell(&[NotifyState::Status(&status), extension(duration.saturating_add(MARGIN))]);
    }

    /// Tells the manager the state of the drain. Asks for more time only while the drain makes
    /// progress (rule S20).
    pub(crate) fn draining(&self, draining: &Draining) {
        let status = bounded(&draining.to_string());
        let extension = extension(EXTENSION.min(draining.left.saturating_add(MARGIN)));
        let states = [NotifyState::Status(&status), extension];
        self.tell(if draining.is_moving { &states } else { &states[..1] });
    }

    /// Returns the interval at which the manager wants to hear that handlers can run, if there is
    /// one.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|interval| self.0.is_some() && !interval.is_zero())
    }

    /// Tells the manager that handlers can run.
    pub(crate) fn watchdog(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if let Some(manager) = &self.0 {
            // A message that the manager does not take now is of no use later.
            let _ = manager.send(states);
        }
    }
}

/// The time that one message asks the manager for.
const EXTENSION: Duration = Duration::from_secs(5);

/// The time for the end of the grace, in which the rest is dropped and the last line is logged.
const MARGIN: Duration = Duration::from_secs(1);

fn extension(duration: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX))
}

/// The largest number of bytes in a STATUS. The manager shows the text in one line, and reads 4096
/// bytes of a datagram.
const STATUS_BYTES: usize = 256;

/// Returns a status as one line of at most [`STATUS_BYTES`], which ends with `...` if `text` does
/// not fit. The text may come from a client or hold paths, and a second line in it would be a
/// message of the protocol.
pub(crate) fn bounded(text: &str) -> String {
    let line = text.replace(char::is_control, " ");
    if line.len() <= STATUS_BYTES {
        return line;
    }
    let mut ends = (0..=STATUS_BYTES - ELLIPSIS.len()).rev();
    let end = ends.find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{ELLIPSIS}", &line[..end])
}

const ELLIPSIS: &str = "...";

/// A datagram socket, and the address of the process that gets the datagrams.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    to: SockAddr,
}

impl NotifySocket {
    /// Returns a socket that sends to the path in NOTIFY_SOCKET, if the variable is set.
    pub(crate) fn from_env() -> Option<Self> {
        let path = env::var_os(SOCKET).filter(|path| !path.is_empty())?;
        static WARNED: Once = Once::new();
        let warn = |error: &io::Error| {
            WARNED.call_once(|| {
                log::warn!("no notifications to {SOCKET}={}: {error}", path.to_string_lossy());
            });
        };
        Self::to(&path).inspect_err(warn).ok()
    }

    /// Returns a socket that sends to a path, or to an abstract name if the text begins with `@`.
    fn to(path: &OsStr) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let mut path = path.as_bytes().to_vec();
        if path.first() == Some(&b'@') {
            path[0] = 0;
        }
        Ok(Self { socket, to: SockAddr::unix(OsStr::from_bytes(&path))? })
    }

    pub(crate) fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let sent = SockRef::from(&self.socket).send_to(text.as_bytes(), &self.to);
        sent.map(drop).inspect_err(|error| log::debug!("cannot notify: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::draining::InFlight;
    use crate::stop::outcome::{OpenWork, WorkKind};
    use crate::stop::stage::Stage;
    use crate::stream::transport::Peer;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    #[test]
    fn nobody_waits_for_a_manager_that_does_not_read() {
        let name = format!("sg-notify-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&addr).unwrap();
        let notify = Notify(NotifySocket::to(format!("@{name}").as_ref()).ok().map(Arc::new));
        assert!(notify.ready().is_ok());
        notify.status("serving");
        for _ in 0..10_000 {
            notify.watchdog();
        }
        assert!(notify.ready().is_err());
        let mut bytes = [0; 100];
        let n = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"READY=1\n");
        let n = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"STATUS=serving\n");
        let n = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"WATCHDOG=1\n");
        drop(manager);
        // The manager is gone, so another try would not help.
        assert!(notify.ready().is_ok());
    }

    #[test]
    fn a_status_is_one_short_line() {
        let long = |text: &str, n| text.repeat(n);
        for (text, expected) in [
            (String::new(), String::new()),
            ("serving".into(), "serving".into()),
            (long("x", 256), long("x", 256)),
            (long("x", 257), long("x", 253) + "..."),
            // 126 characters of two bytes are 252 bytes, and the 253rd would be half a character.
            (long("ä", 200), long("ä", 126) + "..."),
            // Neither a path nor a client can add a line of the protocol.
            ("unix:/a\nREADY=1\r\0".into(), "unix:/a READY=1  ".into()),
        ] {
            assert_eq!(bounded(&text), expected);
        }
    }

    #[test]
    fn time_is_asked_for_only_while_something_moves() {
        let name = format!("sg-extend-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).unwrap();
        let heard_by = UnixDatagram::bind_addr(&addr).unwrap();
        let notify = Notify(NotifySocket::to(format!("@{name}").as_ref()).ok().map(Arc::new));
        let heard = |draining: Draining| {
            notify.draining(&draining);
            let mut bytes = [0; 400];
            let n = heard_by.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..n].to_vec()).unwrap()
        };
        let draining = |left, is_moving| Draining {
            in_flight: InFlight { connections: 2, ..InFlight::default() },
            left: Duration::from_secs(left),
            oldest: None,
            is_moving,
        };
        let status = |left| format!("STATUS=draining: 2 connections, 0 requests, {left} s to go\n");
        assert_eq!(heard(draining(30, true)), status(30) + "EXTEND_TIMEOUT_USEC=5000000\n");
        assert_eq!(heard(draining(2, true)), status(2) + "EXTEND_TIMEOUT_USEC=3000000\n");
        assert_eq!(heard(draining(30, false)), status(30));
        // A client's text pushes nothing out of the datagram.
        let target = "x".repeat(5000);
        let (peer, stage, method) = (Peer::Unknown, Stage::Handler, "GET".into());
        let kind = WorkKind::Connection { peer, stage, method, target };
        let oldest = Some(OpenWork { kind, age: Duration::ZERO });
        let heard = heard(Draining { oldest, ..draining(30, true) });
        assert!(heard.ends_with("xxx...\nEXTEND_TIMEOUT_USEC=5000000\n"), "{heard}");
    }

    #[test]
    fn the_longest_durations_are_no_panic() {
        let left = Duration::MAX;
        // Without a manager, making the text does not fail.
        let notify = Notify::default();
        notify.lame_duck(left);
        let in_flight = InFlight::default();
        notify.draining(&Draining { in_flight, left, oldest: None, is_moving: true });
    }
}
