//! [`Parent`]: the keeper of this process, at the other end of the parent channel.
//!
//! Invariant: the keeper's words come out in their order, each once, and its end comes last. This
//! process reports once that it serves. This file knows the listeners by their numbers alone, and
//! does not act on the words.

use std::collections::VecDeque;
use std::env;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::{Context, Poll};

use crate::error::reason;
use crate::lock::lock;
use crate::restart::channel::{Channel, KEEPER, Received};
use crate::restart::message::{Leave, Message, Offered, Ready};
use crate::threads;

/// The version of a keeper's state that this program reads, or 0. Set when the program becomes its
/// own keeper.
static RESUMES: AtomicU16 = AtomicU16::new(0);

/// Returns the version of a keeper's state that this program reads, or 0.
pub(crate) fn resumes() -> u16 {
    RESUMES.load(Ordering::Relaxed)
}

/// Notes that this program can be its own keeper, and reads this version of a keeper's state.
#[cfg(feature = "keeper")]
pub(crate) fn set_resumes(version: u16) {
    RESUMES.store(version, Ordering::Relaxed);
}

/// The keeper of this process.
pub(crate) struct Parent {
    channel: Channel,
    /// The sockets that this process has from descriptor 3 on.
    pub(crate) offered: Vec<Offered>,
    state: Mutex<ParentState>,
}

/// An event from the keeper.
pub(crate) enum Word {
    /// Connections come from this passage.
    Pass(Channel),
    /// A successor serves, so this process hands its connections over through the passage, if there
    /// is one, and stops.
    Leave(Leave, Option<Channel>),
    /// The keeper has ended.
    KeeperEnded,
}

/// The words that were received and not yet returned, and the state after all of them.
#[derive(Default)]
struct ParentState {
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
        // The look at the variable comes first, because the check starts a thread.
        env::var_os(KEEPER)?;
        threads::check().ok()?;
        let channel = Channel::from_env()?;
        // The keeper has sent the offer before this process began.
        match channel.try_receive() {
            Some(Ok(Some((Message::Offer(offered), _)))) => {
                Some(Self { channel, offered, state: Mutex::default() })
            }
            _ => {
                log::warn!(
                    "the keeper has not said which sockets it passes; this process has none"
                );
                None
            }
        }
    }

    /// Reports to the keeper that this process serves. `sockets` are those of new listeners, in
    /// their order. Returns `false`, and sends nothing, if this process has reported before.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::WouldBlock`] if the keeper takes no message now.
    pub(crate) fn ready(&self, ready: Ready, sockets: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let mut state = lock(&self.state);
        if state.is_ready {
            return Ok(false);
        }
        match self.channel.send(&Message::Ready(ready), sockets) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // The keeper has ended, or has closed the channel, and its last word reports that.
            Err(error) => log::debug!("the keeper does not hear this process: {}", reason(&error)),
            Ok(()) => {}
        }
        state.is_ready = true;
        Ok(true)
    }

    /// Reads all that the keeper has sent. Returns `true` if the keeper has closed its copies of
    /// the listening sockets.
    pub(crate) fn read_whether_let_go(&self) -> bool {
        let mut state = lock(&self.state);
        // The keeper sends this word before a stop signal, and this process may not have read it
        // yet.
        while let Some(received) = self.channel.try_receive() {
            if state.put(received) {
                break;
            }
        }
        state.has_let_go
    }

    /// Waits for the next word of the keeper. After [`Word::KeeperEnded`], the future stays
    /// pending.
    pub(crate) async fn next_word(&self) -> Word {
        std::future::poll_fn(|cx| self.poll_word(cx)).await
    }

    fn poll_word(&self, cx: &mut Context<'_>) -> Poll<Word> {
        let mut state = lock(&self.state);
        loop {
            if let Some(word) = state.words.pop_front() {
                return Poll::Ready(word);
            }
            if state.is_gone {
                return Poll::Pending;
            }
            match self.channel.poll_receive(cx) {
                Poll::Ready(received) => drop(state.put(received)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl ParentState {
    /// Takes note of a message, the end or an error. Returns `true` if nothing more can come.
    fn put(&mut self, received: io::Result<Option<Received>>) -> bool {
        if self.is_gone {
            return true;
        }
        match received {
            Ok(Some((message, descriptors))) => {
                // This fails for a descriptor that is not a socket.
                let mut ends = descriptors.into_iter().filter_map(|end| Channel::of(end).ok());
                match message {
                    Message::Pass => self.words.extend(ends.next().map(Word::Pass)),
                    Message::Leave(leave) => self.words.push_back(Word::Leave(leave, ends.next())),
                    Message::Alone => self.has_let_go = true,
                    _ => log::warn!("the keeper has sent a message that makes no sense"),
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
        self.words.push_back(Word::KeeperEnded);
    }
}

#[cfg(all(test, not(target_vendor = "apple")))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    use futures_lite::future::{block_on, poll_once};
    use rustix::net::{SendFlags, send};

    use crate::restart::message::Taken;

    /// Returns a child's view of its keeper, and the keeper's end of the channel.
    fn parent() -> (Parent, Channel) {
        let (channel, end) = Channel::pair().unwrap();
        let parent = Parent { channel, offered: Vec::new(), state: Mutex::default() };
        (parent, Channel::of(end).unwrap())
    }

    /// Returns a short text for the next word, or `None` if there is none.
    fn next(parent: &Parent) -> Option<String> {
        block_on(poll_once(parent.next_word())).map(|word| match word {
            Word::Pass(_) => "pass".to_owned(),
            Word::Leave(leave, passage) => {
                format!("leave to {} {}", leave.successor, passage.is_some())
            }
            Word::KeeperEnded => "gone".to_owned(),
        })
    }

    fn leave(successor: u32) -> Message {
        Message::Leave(Leave { successor, ..Leave::default() })
    }

    /// `read_whether_let_go` receives everything, and loses no word.
    #[test]
    fn words_come_in_their_order_and_the_end_comes_once() {
        for looks in [false, true] {
            let (parent, keeper) = parent();
            let (_, passage) = Channel::pair().unwrap();
            assert_eq!(next(&parent), None);
            assert!(!parent.read_whether_let_go());
            keeper.send(&Message::Pass, &[passage.as_fd()]).unwrap();
            keeper.send(&leave(7), &[passage.as_fd()]).unwrap();
            assert!(!parent.read_whether_let_go());
            keeper.send(&Message::Alone, &[]).unwrap();
            keeper.send(&leave(8), &[]).unwrap();
            assert_eq!(next(&parent).as_deref(), Some("pass"));
            if looks {
                assert!(parent.read_whether_let_go());
            }
            drop(keeper);
            for word in ["leave to 7 true", "leave to 8 false", "gone"] {
                assert_eq!(next(&parent).as_deref(), Some(word));
            }
            assert_eq!(
                (next(&parent), parent.read_whether_let_go(), next(&parent)),
                (None, true, None)
            );
        }
    }

    #[test]
    fn a_keeper_that_has_ended_has_let_go() {
        let (parent, keeper) = parent();
        drop(keeper);
        assert!(parent.read_whether_let_go());
        assert_eq!(next(&parent).as_deref(), Some("gone"));
        assert_eq!(next(&parent), None);
    }

    #[test]
    fn a_channel_that_fails_ends_once() {
        let mut state = ParentState::default();
        assert!(state.put(Err(io::ErrorKind::Other.into())));
        assert!(state.put(Ok(None)));
        assert!(state.put(Ok(Some((leave(7), Vec::new())))));
        assert!(state.has_let_go && state.is_gone);
        assert!(matches!(state.words.pop_front(), Some(Word::KeeperEnded)));
        assert!(state.words.is_empty());
    }

    #[test]
    fn nonsense_is_no_word_and_hides_none() {
        let (parent, keeper) = parent();
        let file = File::open("/dev/null").unwrap();
        let answer = Message::Taken(Taken { number: 1, count: 1, takes_more: true });
        send(keeper.as_fd(), b"?", SendFlags::empty()).unwrap();
        keeper.send(&answer, &[]).unwrap();
        keeper.send(&Message::Offer(Vec::new()), &[]).unwrap();
        // One message lacks the passage's end, and the other one's end is not a socket.
        keeper.send(&Message::Pass, &[]).unwrap();
        keeper.send(&Message::Pass, &[file.as_fd()]).unwrap();
        assert!(!parent.read_whether_let_go());
        assert_eq!(next(&parent), None);
        keeper.send(&leave(7), &[file.as_fd()]).unwrap();
        assert_eq!(next(&parent).as_deref(), Some("leave to 7 false"));
    }

    #[test]
    fn only_the_first_report_is_sent() {
        let (parent, keeper) = parent();
        assert!(parent.ready(Ready { resumes: 1, ..Ready::default() }, &[]).unwrap());
        assert!(!parent.ready(Ready { resumes: 2, ..Ready::default() }, &[]).unwrap());
        let (message, _) = block_on(keeper.receive()).unwrap().unwrap();
        assert_eq!(message, Message::Ready(Ready { resumes: 1, ..Ready::default() }));
        assert!(keeper.try_receive().is_none());
    }

    #[test]
    fn a_report_that_does_not_get_through_can_be_sent_again() {
        let (parent, keeper) = parent();
        while parent.channel.send(&Message::Alone, &[]).is_ok() {}
        let report = || parent.ready(Ready::default(), &[]);
        assert_eq!(report().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while keeper.try_receive().is_some() {}
        assert!(report().unwrap());
        let (message, _) = block_on(keeper.receive()).unwrap().unwrap();
        assert_eq!(message, Message::Ready(Ready::default()));
    }

    /// The last word reports the end, so this process does not report again.
    #[test]
    fn a_report_to_a_keeper_that_has_ended_is_no_error() {
        let (parent, keeper) = parent();
        drop(keeper);
        assert!(parent.ready(Ready::default(), &[]).unwrap());
        assert_eq!(next(&parent).as_deref(), Some("gone"));
    }
}
