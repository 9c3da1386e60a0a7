//! Tests each case of a keeper in one table, without a process and without waiting.
//!
//! A row has the events with their times in milliseconds, and the actions of the keeper. The
//! deadlines of the policy need no row, because the test reaches each of them. The patience is 1 s.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use async_signal::Signal;

use super::{Action, Ending, Event, Failure, Next, Note, Policy};

/// A policy, the time, and the actions so far.
struct Stage {
    policy: Policy,
    begin: Instant,
    now: Instant,
    lines: String,
}

impl Stage {
    fn new() -> Self {
        let mut policy = Policy::new(Duration::from_secs(1));
        let now = Instant::now();
        let first = policy.begin(now);
        let mut stage = Self { policy, begin: now, now, lines: String::new() };
        stage.write(&first);
        stage
    }

    /// Moves the clock to the time, and reaches each deadline before it.
    fn until(&mut self, ms: u64) {
        let until = self.begin + Duration::from_millis(ms);
        while let Some(deadline) = self.policy.deadline().filter(|deadline| *deadline <= until) {
            self.now = deadline.max(self.now);
            self.on(Event::Tick);
        }
        self.now = until;
    }

    fn on(&mut self, event: Event) {
        let actions = self.policy.on(event, self.now);
        self.write(&actions);
    }

    fn write(&mut self, actions: &[Action]) {
        if !actions.is_empty() {
            let words: Vec<_> = actions.iter().map(word).collect();
            let at = (self.now - self.begin).as_millis();
            writeln!(self.lines, "{at}: {}", words.join(", ")).unwrap();
        }
    }
}

/// Returns an action as the table writes it.
fn word(action: &Action) -> String {
    match action {
        Action::Start(id) => format!("start {id}"),
        Action::TakeOver { new, old: Some(old) } => format!("{new} takes over from {old}"),
        Action::TakeOver { new, old: None } => format!("{new} serves"),
        Action::Term(id) => format!("term {id}"),
        Action::Kill(id) => format!("kill {id}"),
        Action::Forward(id, signal) => format!("{signal:?} to {id}").to_lowercase(),
        Action::LetGo => "let go".into(),
        Action::FirstReady => "tell ready".into(),
        Action::RestartBegins => "tell begin".into(),
        Action::RestartEnds { is_done } => {
            format!("tell {}", if *is_done { "done" } else { "failed" })
        }
        Action::Resume(id) => format!("as {id}"),
        Action::Note(note) => match note {
            Note::AnotherFollows => "'another follows'".into(),
            Note::TooLate(_) => "'too late'".into(),
            Note::Stopping(_) => "'stopping'".into(),
            Note::Ready(id) => format!("'{id} ready'"),
            Note::Ended(id, _) => format!("'{id} ended'"),
            Note::NoRestart { failure, old: Some(old) } => {
                format!("'no restart: {}; {old} goes on'", failed(failure))
            }
            Note::NoRestart { failure, old: None } => format!("'{}'", failed(failure)),
            Note::Died { id, next: Next::After(pause), .. } => {
                format!("'{id} died, next in {}'", pause.as_millis())
            }
            Note::Died { id, next: Next::OnItsWay(next), .. } => {
                format!("'{id} died, {next} comes'")
            }
            Note::NotRevived { failure, pause } => {
                format!("'{}, next in {}'", failed(failure), pause.as_millis())
            }
        },
        Action::End(Ending::Code(code)) => format!("exit {code}"),
        Action::End(Ending::NotStarted(_)) => "fail: not started".into(),
        Action::End(Ending::Late(id)) => format!("fail: {id} late"),
    }
}

fn failed(failure: &Failure) -> String {
    match failure {
        Failure::NotStarted(_) => "not started".into(),
        Failure::Ended(id, _) => format!("{id} ended"),
        Failure::EndedOnTrial(id, _) => format!("{id} ready and ended"),
        Failure::Late(id) => format!("{id} late"),
    }
}

/// Reads an event: `ready 1`, `ended 1 3` (with the exit code), `killed 1 9`, `refused 1`,
/// `restart`, `term`.
fn event(text: &str) -> Event {
    let words: Vec<_> = text.split(' ').collect();
    let number = |at: usize| words[at].parse::<i32>().unwrap();
    let id = || number(1).unsigned_abs();
    match words[0] {
        "ready" => Event::Ready(id()),
        "ended" => Event::Ended(id(), ExitStatus::from_raw(number(2) << 8)),
        "killed" => Event::Ended(id(), ExitStatus::from_raw(number(2))),
        "refused" => Event::NotStarted(id(), "no such file".into()),
        "restart" => Event::Restart(Signal::Usr2),
        "term" => Event::Stop(Signal::Term),
        "later" => Event::Tick,
        _ => panic!("{text} is no event"),
    }
}

/// A name, the events with their times, and one line for each action.
type Row = (&'static str, &'static [(u64, &'static str)], &'static str);

/// The rows. In most of them the first child serves from 60 on.
const ROWS: &[Row] = &[
    (
        "start and stop",
        &[(10, "ready 1"), (5_000, "term"), (5_100, "ended 1 0")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         5000: 'stopping', let go, term to 1
         5100: '1 ended', exit 0",
    ),
    (
        "a restart",
        &[(10, "ready 1"), (1_000, "restart"), (1_200, "ready 2"), (1_500, "ended 1 0")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         1000: tell begin, start 2
         1200: '2 ready'
         1250: 2 takes over from 1, tell done, as 2
         1500: '1 ended'",
    ),
    (
        "ready twice",
        &[(10, "ready 1"), (20, "ready 1"), (100, "ready 1"), (200, "restart"), (300, "ready 2")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         200: tell begin, start 2
         300: '2 ready'
         350: 2 takes over from 1, tell done, as 2",
    ),
    (
        "late, and stops when told",
        &[(10, "ready 1"), (100, "restart"), (1_200, "ready 2"), (1_300, "ended 2 0")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         1100: term 2, 'no restart: 2 late; 1 goes on', tell failed
         1300: '2 ended'",
    ),
    (
        "late, and does not stop",
        &[(10, "ready 1"), (100, "restart"), (6_200, "killed 2 9"), (6_300, "later")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         1100: term 2, 'no restart: 2 late; 1 goes on', tell failed
         6100: kill 2
         6200: '2 ended'",
    ),
    (
        "ended before it was ready",
        &[(10, "ready 1"), (100, "restart"), (200, "ended 2 3"), (300, "restart")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: 'no restart: 2 ended; 1 goes on', tell failed
         300: tell begin, start 3",
    ),
    (
        "ready and dead within 50 ms",
        &[(10, "ready 1"), (100, "restart"), (200, "ready 2"), (249, "killed 2 9"), (400, "later")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         249: 'no restart: 2 ready and ended; 1 goes on', tell failed",
    ),
    (
        "the exit code of a process that was ready for less than 50 ms counts nowhere",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (249, "ended 2 3"),
            (300, "term"),
            (400, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         249: 'no restart: 2 ready and ended; 1 goes on', tell failed
         300: 'stopping', let go, term to 1
         400: '1 ended', exit 0",
    ),
    (
        "ready and dead after 50 ms",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (251, "killed 2 9"),
            (280, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         250: 2 takes over from 1, tell done, as 2
         251: '2 died, next in 50'
         280: '1 ended'
         301: start 3",
    ),
    (
        "the kernel refuses the new program",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (100, "refused 2"),
            (200, "restart"),
            (200, "refused 3"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         100: 'no restart: not started; 1 goes on', tell failed
         200: tell begin, start 3
         200: 'no restart: not started; 1 goes on', tell failed",
    ),
    (
        "ten signals in a second",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "restart"),
            (300, "restart"),
            (400, "restart"),
            (500, "restart"),
            (600, "ready 2"),
            (700, "restart"),
            (800, "restart"),
            (900, "ready 3"),
            (1_000, "ready 4"),
            (1_500, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: 'another follows'
         600: '2 ready'
         650: 2 takes over from 1, tell done, tell begin, start 3
         700: 'another follows'
         900: '3 ready'
         950: 3 takes over from 2, tell done, tell begin, start 4
         1000: '4 ready'
         1050: 4 takes over from 3, tell done, as 4
         1500: '1 ended'",
    ),
    (
        "another restart follows one that has failed",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "restart"),
            (300, "ended 2 1"),
            (400, "ready 3"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: 'another follows'
         300: 'no restart: 2 ended; 1 goes on', tell failed, tell begin, start 3
         400: '3 ready'
         450: 3 takes over from 1, tell done, as 3",
    ),
    (
        "a restart before the first child is ready",
        &[(10, "restart"), (100, "ready 1"), (200, "ready 2")],
        "0: start 1
         10: 'another follows'
         100: '1 ready'
         150: 1 serves, tell ready, tell begin, start 2
         200: '2 ready'
         250: 2 takes over from 1, tell done, as 2",
    ),
    (
        "a stop in the middle of a restart, before the new one is ready",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "term"),
            (250, "killed 2 15"),
            (300, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: 'stopping', let go, term to 1, term to 2
         250: '2 ended'
         300: '1 ended', exit 0",
    ),
    (
        "a new one that does not hear of the stop",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "term"),
            (300, "ended 1 0"),
            (5_300, "killed 2 9"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: 'stopping', let go, term to 1, term to 2
         300: '1 ended'
         5200: kill 2
         5300: '2 ended', exit 0",
    ),
    (
        "a stop while the new one is on trial",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (220, "term"),
            (300, "ended 2 0"),
            (400, "ended 1 1"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         220: 'stopping', let go, term to 1, term to 2
         300: '2 ended'
         400: '1 ended', exit 1",
    ),
    (
        "a second signal goes to all, too",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (300, "term"),
            (400, "term"),
            (410, "ended 1 1"),
            (420, "ended 2 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         250: 2 takes over from 1, tell done, as 2
         300: 'stopping', let go, term to 1, term to 2
         400: term to 1, term to 2
         410: '1 ended'
         420: '2 ended', exit 1",
    ),
    (
        "one that has failed is told once, and a second time only by a second signal",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (1_200, "term"),
            (1_300, "term"),
            (1_400, "ended 2 1"),
            (1_500, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         1100: term 2, 'no restart: 2 late; 1 goes on', tell failed
         1200: 'stopping', let go, term to 1
         1300: term to 1, term to 2
         1400: '2 ended'
         1500: '1 ended', exit 0",
    ),
    (
        "the exit code is the newest child's",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (300, "term"),
            (400, "killed 2 9"),
            (500, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         250: 2 takes over from 1, tell done, as 2
         300: 'stopping', let go, term to 1, term to 2
         400: '2 ended'
         500: '1 ended', exit 137",
    ),
    (
        "what ended badly before the stop does not count",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (300, "ended 1 1"),
            (400, "term"),
            (500, "ended 2 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         250: 2 takes over from 1, tell done, as 2
         300: '1 ended'
         400: 'stopping', let go, term to 2
         500: '2 ended', exit 0",
    ),
    (
        "the old one dies while the new one starts",
        &[(10, "ready 1"), (100, "restart"), (200, "killed 1 9"), (300, "ready 2")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '1 died, 2 comes'
         300: '2 ready'
         350: 2 serves, tell done, as 2",
    ),
    (
        "the old one dies while the new one starts, which fails",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "killed 1 9"),
            (300, "ended 2 1"),
            (400, "ready 3"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '1 died, 2 comes'
         300: tell failed, '2 ended, next in 50'
         350: start 3
         400: '3 ready'
         450: 3 serves",
    ),
    (
        "the only one dies",
        &[
            (10, "ready 1"),
            (100, "killed 1 9"),
            (200, "ready 2"),
            (300, "term"),
            (400, "ended 2 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: '1 died, next in 50'
         150: start 2
         200: '2 ready'
         250: 2 serves
         300: 'stopping', let go, term to 2
         400: '2 ended', exit 0",
    ),
    (
        "it dies again and again",
        &[
            (10, "ready 1"),
            (100, "killed 1 9"),
            (160, "ended 2 1"),
            (260, "refused 3"),
            (470, "ready 4"),
            (600, "killed 4 9"),
            (1_010, "ended 5 1"),
            (1_900, "ended 6 1"),
            (3_600, "ended 7 1"),
            (5_700, "ended 8 1"),
            (7_800, "ready 9"),
            (9_000, "killed 9 9"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: '1 died, next in 50'
         150: start 2
         160: '2 ended, next in 100'
         260: start 3
         260: 'not started, next in 200'
         460: start 4
         470: '4 ready'
         520: 4 serves
         600: '4 died, next in 400'
         1000: start 5
         1010: '5 ended, next in 800'
         1810: start 6
         1900: '6 ended, next in 1600'
         3500: start 7
         3600: '7 ended, next in 2000'
         5600: start 8
         5700: '8 ended, next in 2000'
         7700: start 9
         7800: '9 ready'
         7850: 9 serves
         9000: '9 died, next in 50'
         9050: start 10",
    ),
    (
        "one that is started after a death is late",
        &[(10, "ready 1"), (100, "killed 1 9"), (1_200, "ended 2 0"), (1_300, "ready 3")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: '1 died, next in 50'
         150: start 2
         1150: term 2, '2 late, next in 100'
         1200: '2 ended'
         1250: start 3
         1300: '3 ready'
         1350: 3 serves",
    ),
    (
        "a restart in a pause comes at once",
        &[(10, "ready 1"), (100, "killed 1 9"), (120, "restart"), (130, "ready 2"), (300, "later")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: '1 died, next in 50'
         120: tell begin, start 2
         130: '2 ready'
         180: 2 serves, tell done, as 2",
    ),
    (
        "a stop in a pause",
        &[(10, "ready 1"), (100, "killed 1 9"), (120, "term")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: '1 died, next in 50'
         120: 'stopping', let go, exit 137",
    ),
    (
        "a stop in a pause, while an older one finishes",
        &[
            (10, "ready 1"),
            (100, "restart"),
            (200, "ready 2"),
            (2_000, "killed 2 9"),
            (2_010, "term"),
            (2_100, "ended 1 0"),
        ],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: tell begin, start 2
         200: '2 ready'
         250: 2 takes over from 1, tell done, as 2
         2000: '2 died, next in 50'
         2010: 'stopping', let go, term to 1
         2100: '1 ended', exit 137",
    ),
    (
        "the first child cannot be started",
        &[(0, "refused 1")],
        "0: start 1
         0: 'not started', fail: not started",
    ),
    (
        "the first child ends with 3",
        &[(10, "ended 1 3")],
        "0: start 1
         10: '1 ended', exit 3",
    ),
    (
        "the first child is ready and is killed",
        &[(10, "ready 1"), (20, "killed 1 9")],
        "0: start 1
         10: '1 ready'
         20: '1 ready and ended', exit 137",
    ),
    (
        "the first child is never ready",
        &[(500, "restart"), (1_050, "restart"), (1_100, "ended 1 0")],
        "0: start 1
         500: 'another follows'
         1000: term 1, '1 late'
         1050: 'too late'
         1100: '1 ended', fail: 1 late",
    ),
    (
        "the first child is never ready and does not stop",
        &[(2_000, "term"), (6_010, "killed 1 9")],
        "0: start 1
         1000: term 1, '1 late'
         2000: term to 1
         6000: kill 1
         6010: '1 ended', fail: 1 late",
    ),
    (
        "a stop before the first child is ready",
        &[(10, "term"), (20, "restart"), (30, "ready 1"), (40, "killed 1 15")],
        "0: start 1
         10: 'stopping', let go, term to 1
         20: 'too late'
         40: '1 ended', exit 143",
    ),
    (
        "a restart after the stop",
        &[(10, "ready 1"), (100, "term"), (110, "restart"), (120, "ended 1 0")],
        "0: start 1
         10: '1 ready'
         60: 1 serves, tell ready
         100: 'stopping', let go, term to 1
         110: 'too late'
         120: '1 ended', exit 0",
    ),
];

#[test]
fn each_row_goes_as_it_says() {
    for (name, happens, expected) in ROWS {
        let mut stage = Stage::new();
        for (at, text) in *happens {
            stage.until(*at);
            stage.on(event(text));
        }
        // The trial of a child may end.
        stage.until(happens.last().map_or(0, |(at, _)| at + 55));
        let expected: Vec<_> = expected.lines().map(str::trim).collect();
        let lines: Vec<_> = stage.lines.lines().collect();
        assert_eq!(lines, expected, "{name}");
    }
}

/// A keeper that becomes its own new program keeps its state.
#[test]
fn what_is_remembered_goes_on() {
    let mut stage = Stage::new();
    let is_settled = |stage: &Stage| stage.policy.remember().is_some();
    assert!(!is_settled(&stage));
    for (at, text, settled) in [
        (10, "ready 1", false),
        (100, "restart", false),
        (200, "ready 2", false),
        // Child 2 serves, and child 1 leaves.
        (300, "later", true),
        (400, "restart", false),
        // The keeper tells child 3 to stop.
        (1_500, "later", true),
    ] {
        stage.until(at);
        stage.on(event(text));
        assert_eq!(is_settled(&stage), settled, "{text} at {at}");
    }
    let remembered = stage.policy.remember().unwrap();
    let patience = Duration::from_secs(1);
    let mut resumed = Policy::resume(patience, remembered);
    assert_eq!(resumed.serving(), Some(2));
    assert_eq!(resumed.deadline(), stage.policy.deadline());
    // Both policies do the same from now on.
    let now = stage.now;
    for (at, text) in [
        (1_600, "restart"),
        (1_700, "ended 1 0"),
        (1_800, "killed 3 9"),
        (1_900, "ready 4"),
        (2_000, "later"),
        (2_100, "term"),
        (2_200, "ended 2 0"),
        (2_300, "ended 4 0"),
    ] {
        let now = now + Duration::from_millis(at - 1_500);
        assert_eq!(resumed.on(event(text), now), stage.policy.on(event(text), now), "{text}");
    }
    stage.policy.on(event("restart"), now);
    assert!(!is_settled(&stage));
}

/// Events in any order cause no panic. At most one child is on its way, a child that serves stays
/// until another one serves, and a keeper without children ends or starts one.
#[test]
fn any_order_of_events_leaves_a_service() {
    let mut random = crate::seeded::seeded();
    for _ in 0..500 {
        let mut stage = Stage::new();
        let mut at = 0;
        for _ in 0..200 {
            at += random.u64(0..400);
            stage.until(at);
            let ids: Vec<_> = stage.policy.children.iter().map(|child| child.id).collect();
            let Some(id) = random.choice(&ids).copied() else {
                if stage.lines.contains("exit ") || stage.lines.contains("fail: ") {
                    break;
                }
                // A keeper without children is in a pause.
                assert!(stage.policy.deadline().is_some(), "{}", stage.lines);
                continue;
            };
            let before = stage.policy.serving();
            let text = match random.u8(..20) {
                0 => format!("ended {id} {}", random.u8(..3)),
                1 => format!("killed {id} 9"),
                2..=9 => format!("ready {id}"),
                10 if at > 20_000 => "term".into(),
                _ => "restart".into(),
            };
            stage.on(event(&text));
            let coming = stage.policy.children.iter().filter(|child| {
                use super::Condition::{Starting, Trial};
                matches!(child.condition, Starting { .. } | Trial { .. })
            });
            assert!(coming.count() <= 1, "{}", stage.lines);
            if !text.starts_with("ended") && !text.starts_with("killed") {
                assert_eq!(stage.policy.serving(), before, "{text}\n{}", stage.lines);
            }
        }
    }
}
