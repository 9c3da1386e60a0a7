//! [`Latch`], the state that handles, tokens and guards share, and [`Entry`], a holder's place in
//! it.
//!
//! Invariant: the phase only moves forward, and a latch that has left *running* and has no holder
//! takes none any more (rules S1, S2). The holders are a list under one lock. The count is that
//! list's length, and "drained" is a predicate over phase and count, never an event of its own. A
//! child follows its parent, and a holder of a child holds the parent, too. No lock is held while
//! another latch is locked, and no function recurses, because a chain of children may be long.

use std::collections::HashMap;
use std::fmt;
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use async_signal::Signal;
use event_listener::Event;
use slab::Slab;

use crate::lock::lock;
use crate::stop::draining::{Draining, ReportTimes};
use crate::stop::outcome::DrainEnding;
use crate::stop::phase::{AtomicPhase, Phase};
use crate::stop::registry::{Holder, Interrupted, Registry};
use crate::stop::seat::Seat;
use crate::stream::socket::ClientLeft;

/// The four times of a stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) grace: Duration,
    pub(crate) lame_duck: Duration,
    pub(crate) linger: Duration,
    pub(crate) stream_grace: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            linger: Duration::from_millis(100),
            stream_grace: Duration::MAX,
        }
    }
}

/// The state that all handles, tokens and guards share. Every wait listens first and looks
/// afterwards, so it misses no move.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    /// The phase, which moves under the lock of the state, and is read without it.
    phase: Arc<AtomicPhase>,
    state: Mutex<LatchState>,
    /// Notifies of a move of the phase, and of the end of the last holder in the drain.
    moved: Event,
    /// Notifies of a new connection.
    joined: Event,
    /// The latch that this one follows.
    parent: Option<Parent>,
}

/// The link from a child to its parent.
#[derive(Debug)]
struct Parent {
    latch: Arc<Latch>,
    /// The place of the child among the children of the parent.
    key: usize,
}

/// The holders of a latch, and the facts about its stop.
#[derive(Debug, Default)]
pub(crate) struct LatchState {
    pub(crate) times: Times,
    /// The holders that keep the drain open.
    pub(crate) registry: Registry,
    /// Maps the number of each holder to its number in the parent. A latch without a parent has an
    /// empty map, so its connections take no room here.
    above: HashMap<usize, usize>,
    children: Slab<Weak<Latch>>,
    /// The signal that began the stop, and the time for which it had waited before.
    pub(crate) signal: Option<(Signal, Duration)>,
    /// The number of requests that were finished in the drain.
    pub(crate) finished: u64,
    /// The number of connections that a successor has taken.
    pub(crate) handed_over: u64,
    /// The number of streams that were closed because they were silent for too long.
    pub(crate) streams_closed: u64,
    /// The reason for the abort, if there was one.
    pub(crate) aborted: Option<DrainEnding>,
    /// All work that the abort may have cut, and requests that had arrived and were not served.
    pub(crate) interrupted: Vec<Interrupted>,
    /// The times of the log's reports, which several drains share.
    pub(crate) reports: ReportTimes,
}

impl Latch {
    /// Makes a latch that follows this one, with the same times.
    pub(crate) fn child(self: &Arc<Self>) -> Arc<Self> {
        let mut state = self.state();
        // The lock makes sure that a stop does not miss the child.
        Arc::new_cyclic(|child| {
            let key = state.children.insert(child.clone());
            let phase = AtomicPhase::default();
            phase.advance(self.phase());
            let LatchState { times, signal, aborted, .. } = *state;
            let state = LatchState { times, signal, aborted, ..LatchState::default() };
            Self {
                phase: Arc::new(phase),
                state: Mutex::new(state),
                moved: Event::new(),
                joined: Event::new(),
                parent: Some(Parent { latch: self.clone(), key }),
            }
        })
    }

    /// Returns the number of living children.
    #[cfg(test)]
    pub(crate) fn children(&self) -> usize {
        self.state().children.len()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, LatchState> {
        lock(&self.state)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.current()
    }

    /// Returns `true` if this latch follows `other`, directly or not.
    pub(crate) fn is_below(&self, other: &Arc<Self>) -> bool {
        self.parents().any(|parent| std::ptr::eq(parent, &**other))
    }

    fn parent(&self) -> Option<&Self> {
        self.parent.as_ref().map(|parent| &*parent.latch)
    }

    /// Returns the parent, its parent, and so on.
    fn parents(&self) -> impl Iterator<Item = &Self> {
        iter::successors(self.parent(), |latch| latch.parent())
    }

    /// Returns the phase, for readers without the latch.
    pub(crate) fn shared_phase(&self) -> Arc<AtomicPhase> {
        self.phase.clone()
    }

    // ── Its holders ─────────────────────────────────────────────────────────────────────────

    /// Adds a holder, unless the drain of this latch or of a latch above is over or aborted. The
    /// state's lock keeps the phase from moving meanwhile (rule S1).
    pub(crate) fn admit(self: &Arc<Self>, holder: Holder) -> Option<Entry> {
        let mut above = None;
        for latch in self.eldest_first() {
            above = Some(latch.admit_here(holder.for_another_latch(), above)?);
        }
        let id = self.admit_here(holder, above)?;
        Some(Entry { latch: self.clone(), id })
    }

    /// Adds a holder beside one of the same kind, which holds the latch open meanwhile.
    pub(crate) fn admit_beside(self: &Arc<Self>, holder: Holder) -> Entry {
        let mut above = None;
        for latch in self.eldest_first() {
            above = Some(latch.insert(latch.state(), holder.for_another_latch(), above));
        }
        let id = self.insert(self.state(), holder, above);
        Entry { latch: self.clone(), id }
    }

    /// Returns the latches above, the eldest first. Holders are added in this order, so no latch is
    /// drained while a latch below has a holder.
    fn eldest_first(&self) -> Vec<&Self> {
        let mut line: Vec<_> = self.parents().collect();
        line.reverse();
        line
    }

    /// Adds a holder to this latch alone, and returns its number. If this latch takes no holder,
    /// removes the holder from the latches above.
    fn admit_here(&self, holder: Holder, above: Option<usize>) -> Option<usize> {
        let state = self.state();
        let is_open = match self.phase() {
            Phase::Running => true,
            // A server that was stopped before it began still has to serve the queues of its
            // listeners (rule S4), and the program waits for the outcome of that server.
            Phase::Draining => {
                !state.registry.holders.is_empty() || matches!(holder, Holder::Server)
            }
            Phase::Aborting => false,
        };
        if is_open {
            return Some(self.insert(state, holder, above));
        }
        drop(state);
        if let (Some(parent), Some(above)) = (self.parent(), above) {
            parent.leave(above);
        }
        None
    }

    fn insert(
        &self,
        mut state: MutexGuard<'_, LatchState>,
        holder: Holder,
        above: Option<usize>,
    ) -> usize {
        let is_connection = holder.seat().is_some();
        let id = state.registry.holders.insert(holder);
        if let Some(above) = above {
            state.above.insert(id, above);
        }
        drop(state);
        if is_connection {
            self.joined.notify(usize::MAX);
        }
        id
    }

    /// Removes a holder from this latch and from the latches above.
    fn leave(&self, id: usize) {
        let mut place = self.leave_here(id);
        for latch in self.parents() {
            place = place.and_then(|id| latch.leave_here(id));
        }
    }

    /// Removes a holder from this latch alone. Returns the holder's number in the parent.
    fn leave_here(&self, id: usize) -> Option<usize> {
        let mut state = self.state();
        let holder = state.registry.holders.remove(id);
        let above = self.parent().and_then(|_| state.above.remove(&id));
        let is_last = state.registry.holders.is_empty();
        drop(state);
        if let Some(seat) = holder.seat() {
            seat.client_left(ClientLeft::Gone);
        }
        // The phase is read after the registry has changed. `advance` moves the phase under the
        // same lock and then notifies, so one of the two sides sees both changes.
        if is_last && self.phase() > Phase::Running {
            self.moved.notify(usize::MAX);
        }
        above
    }

    /// Wakes the connections that `choose` returns, and returns their number. The registry is
    /// unlocked before, because a waker may run any code.
    pub(crate) fn wake(&self, choose: impl FnOnce(&mut Registry) -> Vec<Arc<Seat>>) -> usize {
        let seats = choose(&mut self.state().registry);
        seats.iter().for_each(|seat| seat.wake());
        seats.len()
    }

    /// Changes the facts about the stop, in this latch and in the latches above.
    pub(crate) fn note(&self, change: impl Fn(&mut LatchState)) {
        change(&mut self.state());
        self.parents().for_each(|latch| change(&mut latch.state()));
    }

    // ── Its moves ───────────────────────────────────────────────────────────────────────────

    /// Moves this latch and its children to *draining*, unless that has happened before.
    pub(crate) fn stop(&self, signal: Option<(Signal, Duration)>) {
        let mut followers = self.advance(Phase::Draining, |state| state.signal = signal);
        while let Some(latch) = followers.pop() {
            followers.extend(latch.advance(Phase::Draining, |state| state.signal = signal));
        }
    }

    /// Moves this latch and its children to *aborting*, unless that has happened before. A drain in
    /// a latch above goes on, and its outcome names the work that was cut here.
    pub(crate) fn abort(&self, ending: DrainEnding) {
        // This entry keeps a drain above open until it knows of the cuts.
        let above = self.parent.as_ref().and_then(|parent| parent.latch.admit(Holder::Server));
        let cuts = self.abort_with_children(ending);
        for latch in self.parents() {
            let mut state = latch.state();
            if latch.phase() == Phase::Draining && !cuts.is_empty() {
                state.interrupted.extend(cuts.iter().cloned());
                state.aborted.get_or_insert(ending);
            }
        }
        drop(above);
    }

    /// Aborts this latch and its children. Returns the work that this may cut in this latch.
    fn abort_with_children(&self, ending: DrainEnding) -> Vec<Interrupted> {
        let (cuts, mut followers) = self.abort_alone(ending);
        let mut next = 0;
        while let Some(latch) = followers.get(next) {
            let (_, children) = latch.abort_alone(ending);
            followers.extend(children);
            next += 1;
        }
        for latch in followers.iter().map(|latch| &**latch).chain([self]) {
            latch.wake(|registry| registry.seats().cloned().collect());
        }
        cuts
    }

    /// Moves this latch alone to *aborting*. Returns the work that this may cut, and the children,
    /// which have to follow.
    fn abort_alone(&self, ending: DrainEnding) -> (Vec<Interrupted>, Vec<Arc<Self>>) {
        let mut cuts = Vec::new();
        let children = self.advance(Phase::Aborting, |state| {
            // S13: list the cuts before any task drops its work. Work of a child that was aborted
            // before is in the list already.
            cuts = state.registry.may_be_cut(Instant::now());
            cuts.retain(|cut| !state.interrupted.iter().any(|known| known.is_same(cut)));
            state.interrupted.extend(cuts.iter().cloned());
            state.aborted = Some(ending);
        });
        (cuts, children)
    }

    /// Moves the phase forward to `phase`, unless that has happened before, and lets `note` write
    /// the reason. Returns the children, which have to follow.
    fn advance(&self, phase: Phase, note: impl FnOnce(&mut LatchState)) -> Vec<Arc<Self>> {
        let mut state = self.state();
        if self.phase() >= phase {
            return Vec::new();
        }
        note(&mut state);
        self.phase.advance(phase);
        let children = state.children.iter().filter_map(|(_, child)| child.upgrade()).collect();
        drop(state);
        self.moved.notify(usize::MAX);
        children
    }

    // ── Waits ───────────────────────────────────────────────────────────────────────────────

    pub(crate) async fn reached(&self, phase: Phase) {
        self.until(&self.moved, |latch| latch.phase() >= phase).await;
    }

    /// Waits until the drain is over. This is a predicate, which is evaluated again after every
    /// change.
    pub(crate) async fn drained(&self) {
        let is_over = |latch: &Self| {
            latch.phase() > Phase::Running && latch.state().registry.holders.is_empty()
        };
        self.until(&self.moved, is_over).await;
    }

    /// Waits until `is_there` returns `true`.
    pub(crate) async fn occupied(&self, is_there: impl Fn(&Registry) -> bool) {
        self.until(&self.joined, |latch| is_there(&latch.state().registry)).await;
    }

    async fn until(&self, event: &Event, is_ready: impl Fn(&Self) -> bool) {
        while !is_ready(self) {
            let listener = event.listen();
            if is_ready(self) {
                return;
            }
            listener.await;
        }
    }

    /// Returns the state of the drain. `moves` is the count from the last report, and is updated.
    pub(crate) fn draining(&self, left: Duration, moves: &mut Option<u64>) -> Draining {
        let state = self.state();
        let now = state.registry.moves().wrapping_add(state.finished);
        let open_work = state.registry.may_be_cut(Instant::now());
        let in_flight = state.registry.counted();
        drop(state);
        let oldest = open_work.into_iter().find(Interrupted::is_cut);
        Draining {
            in_flight,
            left,
            oldest: oldest.map(|holder| holder.work),
            is_moving: moves.replace(now) != Some(now),
        }
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut parent = self.parent.take();
        while let Some(Parent { latch, key }) = parent {
            latch.state().children.remove(key);
            // If this was the parent's last owner, the loop goes on with the grandparent.
            parent = Arc::into_inner(latch).and_then(|mut latch| latch.parent.take());
        }
    }
}

/// A holder's place in a latch. The drain stays open as long as this value lives.
pub(crate) struct Entry {
    latch: Arc<Latch>,
    /// The place among the holders of the latch.
    id: usize,
}

impl fmt::Debug for Entry {
    /// Leaves out the latch, which would list all of its holders again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Entry {
    /// Returns the latch of this holder.
    pub(crate) fn latch(&self) -> &Arc<Latch> {
        &self.latch
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.latch.leave(self.id);
    }
}
