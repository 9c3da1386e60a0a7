//! Lets all servers of a process obey its keeper together.
//!
//! Invariant: one server at a time reads the keeper's words, and all of them follow. A server hands
//! over before it stops, so that no response in between says `close`. Without a keeper, this file
//! does nothing.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};

use futures_lite::{FutureExt, future};

use crate::adoption::Adoption;
use crate::courier::Courier;
use crate::error::reason;
use crate::listen::listener::Listener;
use crate::lock::lock;
use crate::restart::channel::Channel;
use crate::restart::message::{Leave, Message};
use crate::restart::parent::{Parent, Word};
use crate::server::running::{HandOverStart, Running};
use crate::stop::draining::InFlight;
use crate::stop::phase::Phase;
use crate::stop::shutdown::Shutdown;

/// The servers of this process, if it has a keeper.
static SERVERS: Mutex<Vec<Weak<Running>>> = Mutex::new(Vec::new());

/// The lock of the server that reads the keeper's words.
static READER: smol::lock::Mutex<()> = smol::lock::Mutex::new(());

/// Notes that a server listens.
pub(crate) fn join(running: &Arc<Running>) {
    if Parent::of_this_process().is_some() {
        let mut servers = lock(&SERVERS);
        servers.retain(|server| server.strong_count() > 0);
        servers.push(Arc::downgrade(running));
    }
}

/// Returns `true` if a server of this process has joined.
pub(crate) fn has_server() -> bool {
    !servers().is_empty()
}

/// Obeys the keeper, and hands the connections of `running` over when the keeper says so. The
/// future stays pending for ever.
pub(crate) async fn obey<T>(running: &Arc<Running>) -> T {
    let Some(parent) = Parent::of_this_process() else { return future::pending().await };
    let read = async {
        let _reader = READER.lock().await;
        read(parent, running).await
    };
    read.or(hand_over(running)).await
}

/// Hands connections over after a hand-over has begun. The future stays pending for ever.
async fn hand_over<T>(running: &Running) -> T {
    match running.hand_over.1.recv().await {
        Ok(HandOverStart { passage, predecessors, guard }) => {
            Courier::new(running, passage).run(predecessors, guard).await
        }
        // The server holds the sender, so this does not happen while the server lives.
        Err(_) => future::pending().await,
    }
}

/// Reads the keeper's words, and takes the connections that predecessors hand over. The future
/// stays pending for ever.
async fn read<T>(parent: &Parent, running: &Running) -> T {
    leave_the_end_of_the_keeper_to_the_channel();
    let mut adoption = Adoption::new(servers);
    let stopped = async {
        running.stopping().await;
        None
    };
    let mut stopped = Box::pin(stopped);
    loop {
        let word = async { Some(parent.next_word().await) };
        match adoption.until(word.or(&mut stopped)).await {
            Some(Word::Pass(passage)) => adoption.add(passage),
            Some(Word::Leave(leave, passage)) => {
                let predecessors = adoption.end();
                leave_to(&leave, passage, predecessors);
                break;
            }
            Some(Word::KeeperEnded) => stop_without_keeper(),
            // The drop closes the passages, so predecessors learn at once that this process takes
            // no more.
            None => break drop(adoption.end()),
        }
    }
    loop {
        match parent.next_word().await {
            Word::Leave(leave, _) => note_successor(&leave),
            Word::KeeperEnded => stop_without_keeper(),
            Word::Pass(_) => {}
        }
    }
}

/// Asks the kernel not to send a signal when the keeper ends (rule K6), because the channel reports
/// that end. In a stop, the signal would be the second one, and would cut requests. This works on
/// the main thread, which is the only one that gets the signal.
fn leave_the_end_of_the_keeper_to_the_channel() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(None) {
        log::debug!("the kernel sends a signal when the keeper ends: {error}");
    }
}

/// Starts the hand-over of all servers to a successor, and stops them.
fn leave_to(leave: &Leave, passage: Option<Channel>, predecessors: Vec<Channel>) {
    note_successor(leave);
    let servers = servers();
    let (leaving, staying): (Vec<_>, Vec<_>) = servers
        .iter()
        .map(|running| (running, adopted(running, leave)))
        .partition(|(_, adopted)| passage.is_some() && adopted.iter().any(Option::is_some));
    let passages = passage.map(|passage| divide(passage, leaving.len())).unwrap_or_default();
    let mut predecessors = Some(predecessors);
    for ((running, adopted), passage) in leaving.into_iter().zip(passages) {
        running.begin_hand_over(adopted, passage, predecessors.take().unwrap_or_default());
    }
    staying.iter().for_each(|(running, _)| running.log_that_all_stay());
    servers.iter().for_each(|running| running.service.shutdown.stop());
}

/// Returns the number of each listener of a server, or `None` if the successor does not take its
/// connections.
fn adopted(running: &Running, leave: &Leave) -> Vec<Option<u32>> {
    let number = |listener: &Listener| {
        let number = listener.number().filter(|number| leave.adopted.contains(number));
        number.filter(|_| listener.can_move_connections())
    };
    running.listeners.iter().map(number).collect()
}

/// Returns a passage for each of `count` servers. The first one is `passage`, through which the
/// successor gets the other ends of the rest. If one cannot be made, the list is shorter, and
/// servers without a passage stop as without a successor.
fn divide(passage: Channel, count: usize) -> Vec<Channel> {
    let further = (1..count).map_while(|_| {
        let further = Channel::pair().and_then(|(own, other)| {
            passage.send(&Message::Pass, &[other.as_fd()])?;
            Ok(own)
        });
        let warn = |error: &io::Error| log::warn!("too few passages: {}", reason(error));
        further.inspect_err(warn).ok()
    });
    let further: Vec<_> = further.collect();
    [passage].into_iter().chain(further).collect()
}

/// Notes that the successor accepts from the sockets that it has taken, and that no other process
/// has the rest.
fn note_successor(leave: &Leave) {
    let servers = servers();
    let mut latches: Vec<&Shutdown> = Vec::new();
    for running in &servers {
        let latch = &running.service.shutdown;
        if !latches.iter().any(|other| other.is_same(latch)) {
            latches.push(latch);
        }
        for listener in &running.listeners {
            match listener.number() {
                Some(number) if leave.taken.contains(&number) => listener.ownership().hand_over(),
                _ => listener.ownership().keep(),
            }
        }
        running.succeeded();
    }
    let in_flight = latches.iter().map(|latch| latch.counted()).reduce(InFlight::and);
    log::info!("process {} has taken over: {}", leave.successor, in_flight.unwrap_or_default());
}

/// Stops the servers, because the keeper has ended.
fn stop_without_keeper() {
    // S26: the process itself stops the last servers, after the others have drained.
    for running in servers().iter().filter(|running| !running.stops_last) {
        let shutdown = &running.service.shutdown;
        if shutdown.phase() == Phase::Running {
            log::warn!("the keeper is gone; stopping: {}", shutdown.counted());
            shutdown.stop();
        }
    }
}

/// Returns the servers of this process that have joined and have not ended.
fn servers() -> Vec<Arc<Running>> {
    lock(&SERVERS).iter().filter_map(Weak::upgrade).collect()
}
