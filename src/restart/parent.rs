//! [`Parent`]: the keeper of this process, at the other end of the parent channel.
//!
//! Invariant: the keeper's words come out in their order, each once, and its end comes last. This
//! process reports once that it serves. Knows the listeners by their numbers alone, and does
//! nothing by itself that the keeper says.

use std::collections::VecDeque;
use std::env;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock};
use std::task::{Context, Poll};

use crate::error::reason;
use crate::lock::lock;
use crate::restart::channel::{Channel, KEEPER, Received};
use crate::restart::message::{Leave, Message, Offered, Ready};
use crate::threads;

/// The keeper of this process.
pub(crate) struct Parent {
    channel: Channel,
    /// The sockets that this process has from descriptor 3 on.
    pub(crate) offered: Vec<Offered>,
    mailbox: Mutex<Mailbox>,
}

/// Words of the keeper.
pub(crate) enum Word {
    /// Connections come from this passage.
    Pass(Channel),
    /// A successor serves, so this process hands over, through the passage if there is one, and
    /// stops.
    Leave(Leave, Option<Channel>),
    /// The keeper has ended.
    Gone,
}

/// The words that were received and not read, and what follows from those that were received.
#[derive(Default)]
struct Mailbox {
    words: VecDeque<Word>,
    /// This process has reported that it serves.
    is_ready: bool,
    /// The keeper has closed its copies of the listening sockets.
    has_let_go: bool,
    is_gone: bool,
}

impl Parent {
    /// Returns the keeper of this process, if it has one.
    pub(crate) fn of_this_process() -> Option<&'static Self> {
        static PARENT: OnceLock<Option<Parent>> = OnceLock::new();
        PARENT.get_or_init(Self::from_env).as_ref()
    }

    fn from_env() -> Option<Self> {
        // The first look is for free, and the second starts a thread.
        env::var_os(KEEPER)?;
        threads::check().ok()?;
        let channel = Channel::from_env()?;
        // The keeper sends it before this process begins.
        match channel.try_receive() {
            Some(Ok(Some((Message::Offer(offered), _)))) => {
                Some(Self { channel, offered, mailbox: Mutex::default() })
            }
            _ => {
                log::warn!(
                    "the keeper has not said which sockets it passes; this process has none"
                );
                None
            }
        }
    }

    /// Reports that this process serves. The sockets are those of the listeners that it has
    /// brought, in their order. Only the first report is sent: returns `false` for a later one.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::WouldBlock`] if the keeper takes no message now.
    pub(crate) fn ready(&self, ready: Ready, sockets: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.is_ready {
            return Ok(false);
        }
        match self.channel.send(&Message::Ready(ready), sockets) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // The keeper has ended, or has closed the channel: the mailbox tells that.
            Err(error) => log::debug!("the keeper does not hear this process: {}", reason(&error)),
            Ok(()) => {}
        }
        mailbox.is_ready = true;
        Ok(true)
    }

    /// Returns `true` if the keeper has closed its copies of the listening sockets.
    pub(crate) fn has_let_go(&self) -> bool {
        let mut mailbox = lock(&self.mailbox);
        // The keeper says so before it sends a stop signal, and nobody may have looked since.
        while let Some(received) = self.channel.try_receive() {
            if mailbox.put(received) {
                break;
            }
        }
        mailbox.has_let_go
    }

    /// Waits for the next word of the keeper. Never ready after [`Word::Gone`].
    pub(crate) async fn word(&self) -> Word {
        std::future::poll_fn(|cx| self.poll_word(cx)).await
    }

    fn poll_word(&self, cx: &mut Context<'_>) -> Poll<Word> {
        let mut mailbox = lock(&self.mailbox);
        loop {
            if let Some(word) = mailbox.words.pop_front() {
                return Poll::Ready(word);
            }
            if mailbox.is_gone {
                return Poll::Pending;
            }
            match self.channel.poll_receive(cx) {
                Poll::Ready(received) => drop(mailbox.put(received)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Mailbox {
    /// Takes note of what has come. Returns `true` if nothing can come any more.
    fn put(&mut self, received: io::Result<Option<Received>>) -> bool {
        if self.is_gone {
            return true;
        }
        match received {
            Ok(Some((message, descriptors))) => {
                // No event can be had for a descriptor that is no socket.
                let mut ends = descriptors.into_iter().filter_map(|end| Channel::of(end).ok());
                match message {
                    Message::Pass => self.words.extend(ends.next().map(Word::Pass)),
                    Message::Leave(leave) => self.words.push_back(Word::Leave(leave, ends.next())),
                    Message::Alone => self.has_let_go = true,
                    _ => log::warn!("the keeper has sent what makes no sense to a child"),
                }
            }
            Ok(None) => self.end(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                log::warn!("the keeper's message cannot be read: {}", reason(&error));
            }
            Err(error) => {
                log::error!("the channel to the keeper has failed: {}", reason(&error));
                self.end();
            }
        }
        self.is_gone
    }

    fn end(&mut self) {
        self.is_gone = true;
        self.has_let_go = true;
        self.words.push_back(Word::Gone);
    }
}
