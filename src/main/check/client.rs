//! One client of a load, which sends one request after the other, and counts the result of each.
//!
//! A busy client asks without a pause, and an idle one sends at random moments. A client repeats a
//! refused connect until it works, because it has sent nothing, and never sends a lost request
//! again. All counts are in the [`Tally`] of the load.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use smol::Timer;

use super::wire::Fault;
use super::{AGAIN, Failure, GATHERING, Kind, Load, Shape, Tally, Wire};

/// The errors of a connect if no server listens, or if the listener closes meanwhile. The file of a
/// Unix socket may be missing.
const REFUSED: [ErrorKind; 3] =
    [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::NotFound];

/// The pause of an idle client after such an error. Thousands of clients that tried every
/// millisecond would leave the server no time to come back.
const IDLE_AGAIN: Duration = Duration::from_millis(50);

/// The longest silence of an idle client.
const SILENCE: Duration = Duration::from_secs(5);

/// The length of the moment of a restart. Half of the share sends at its beginning, and the other
/// half at random times in it.
const MOMENT: Duration = Duration::from_millis(300);

/// One client, which sends one request after the other.
pub struct Client {
    index: usize,
    shape: Shape,
    pub is_idle: bool,
    load: Load,
    tally: Arc<Tally>,
    /// The connection that is kept for the next request.
    wire: Option<Wire>,
    /// The client's end of the latest connection.
    local: String,
}

impl Client {
    pub fn new(index: usize, shape: Shape, load: &Load, tally: &Arc<Tally>) -> Self {
        Self {
            index,
            shape,
            is_idle: (load.clients..load.clients + load.idle).contains(&index),
            load: load.clone(),
            tally: tally.clone(),
            wire: None,
            local: String::new(),
        }
    }

    /// Sends requests until the load is over.
    pub async fn run(mut self) {
        for number in 1.. {
            if self.is_idle {
                self.rest(number).await;
            }
            let is_last = self.is_told_to_end();
            if !is_last || self.is_idle {
                self.turn(number).await;
            }
            if is_last {
                break;
            }
            if !self.is_idle && self.shape != Shape::Slow {
                self.wait_for_gap(number).await;
            }
        }
        // If the server has closed the connection meanwhile, this counts the close.
        self.look().await;
    }

    /// Waits for a random time, which a restart or the end of the load may cut short.
    async fn rest(&self, number: u64) {
        let woken = self.tally.crowd.listen();
        if !self.tally.is_stopping() {
            let silence = if number == 1 { GATHERING } else { SILENCE };
            let by_time = async {
                random_part_of(silence).await;
                false
            };
            let by_event = async {
                woken.await;
                true
            };
            if !by_time.or(by_event).await {
                return;
            }
        }
        if self.tally.is_stopping() {
            random_part_of(GATHERING).await;
        } else if fastrand::bool() {
            random_part_of(MOMENT).await;
        }
    }

    /// Waits for the gap between two requests, unless the load ends. The first gap is shorter by a
    /// random part, so that not all clients ask at the same time.
    async fn wait_for_gap(&self, number: u64) {
        let gap = self.load.gap;
        let end = self.tally.end.listen();
        if gap.is_zero() || self.is_told_to_end() {
            return;
        }
        let by_time = async {
            if number == 1 {
                random_part_of(gap).await;
            } else {
                Timer::after(gap).await;
            }
        };
        by_time.or(end).await;
    }

    /// Sends request `number`, and counts its result.
    async fn turn(&mut self, number: u64) {
        self.tally.begin(self.index, number);
        let begun = Instant::now();
        match self.ask(number).await {
            Ok(true) => self.tally.answer(self.shape, self.index, number, begun),
            // The load has ended before the client sent anything.
            Ok(false) => {}
            Err(loss) => {
                self.lose(loss, begun);
                self.wait().await;
            }
        }
    }

    fn lose(&self, (kind, what): Loss, begun: Instant) {
        self.tally.lose(Failure {
            kind,
            shape: self.shape,
            client: format!("client {} ({})", self.index, self.local),
            at: self.tally.elapsed(),
            elapsed: begun.elapsed(),
            what,
        });
    }

    /// Sends a request and checks its answer. Returns `false` if the load ended before the client
    /// sent anything.
    async fn ask(&mut self, number: u64) -> Result<bool, Loss> {
        let (request, body) = self.load.requests.request(self.shape, number);
        if !self.load.is_blind {
            self.look().await;
        }
        let is_used = self.wire.is_some();
        let Some(mut wire) = (match self.wire.take() {
            Some(wire) => Some(wire),
            None => self.connect().await,
        }) else {
            return Ok(false);
        };
        let answer = match within(self.load.patience, wire.exchange(&request)).await {
            Ok(answer) => answer,
            Err(fault) => {
                if is_used && matches!(fault, Fault::Ended(_)) {
                    self.tally.close_untold(self.shape);
                }
                return Err(wire.loss(&fault, is_used));
            }
        };
        answer.check(body.as_deref()).map_err(|what| (Kind::Wrong, what))?;
        if answer.is_last {
            within(self.load.patience, wire.end())
                .await
                .map_err(|fault| (Kind::Wrong, format!("after the last answer: {fault}")))?;
            if self.shape.asks_for_close(number) {
                self.tally.close_as_asked();
            } else {
                self.tally.close_as_told(self.shape);
            }
        } else if self.shape != Shape::Fresh {
            self.wire = Some(wire);
        }
        Ok(true)
    }

    /// Looks whether the server has closed the kept connection.
    async fn look(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        match wire.look().await {
            Ok(true) => return,
            Ok(false) => self.tally.close_untold(self.shape),
            // This loses no request, but a server should not do it.
            Err(fault) => {
                if matches!(fault, Fault::Ended(_)) {
                    self.tally.close_untold(self.shape);
                }
                let what = format!("while nothing was asked: {fault}");
                self.lose((Kind::Wrong, what), Instant::now());
            }
        }
        self.wire = None;
    }

    /// Connects, and tries again until that works. Returns `None` if the load ended before.
    async fn connect(&mut self) -> Option<Wire> {
        let mut is_refused = false;
        loop {
            let begun = Instant::now();
            let late = async {
                Timer::after(self.load.patience).await;
                Err(ErrorKind::TimedOut.into())
            };
            match Wire::connect(&self.load.target).or(late).await {
                Ok((wire, local)) => {
                    self.local = local;
                    return Some(wire);
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    self.lose((Kind::Stalled, format!("connect: {error}")), begun);
                }
                Err(error) => {
                    self.tally.refuse(self.shape, !is_refused);
                    is_refused = true;
                    if !REFUSED.contains(&error.kind()) {
                        self.tally.odd.get_or_init(|| error.to_string());
                    }
                }
            }
            if self.is_told_to_end() {
                return None;
            }
            self.wait().await;
        }
    }

    fn is_told_to_end(&self) -> bool {
        if self.is_idle { self.tally.is_stopping() } else { self.tally.is_over() }
    }

    /// Waits before another attempt.
    async fn wait(&self) {
        Timer::after(if self.is_idle { IDLE_AGAIN } else { AGAIN }).await;
    }
}

/// The kind of a loss, and its description.
pub type Loss = (Kind, String);

/// Waits for `future`, but not longer than `patience`.
pub async fn within<T>(
    patience: Duration,
    future: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = async {
        Timer::after(patience).await;
        Err(Fault::Late)
    };
    future.or(late).await
}

async fn random_part_of(duration: Duration) {
    Timer::after(duration.mul_f64(fastrand::f64())).await;
}
