//! `smol-graceful check` as an operator runs it, with a good server and with bad ones.
//!
//! The tests read the lines, the picture and the page. The counting itself has its tests beside the
//! code, in `src/main/check`.

#![cfg(target_os = "linux")]

#[path = "check/bad.rs"]
mod bad;
mod common;

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use bad::{Fault, FaultAt, FaultyServer, LATE, read_request};
use common::{Directory, PATIENCE, ProcessId, Program, SERVER, case, output_within, text};
use roxmltree::{Document, ParsingOptions};
use rustix::process::{Pid, Signal};

/// The rows of a report that count faults.
const FAULTS: [&str; 8] =
    ["told", "untold", "refused", "crossed", "reset", "cut", "wrong", "stalled"];

// Bad servers.

/// Each fault is counted in its own row, once for each restart, and in the verdict.
#[test]
fn each_fault_is_counted_as_what_it_is() {
    use Fault::{Bytes, End, Leave};

    let okay = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nokay";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nokay";
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok";
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nokay";
    let other = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nokey";
    for (fault, on, flags, rows, verdict) in [
        (End(""), FaultAt::First, "", &[("reset", 2)][..], "2 lost"),
        (End(""), FaultAt::Later, "", &[("crossed", 2), ("untold", 2)], "2 lost"),
        (End(half), FaultAt::First, "", &[("cut", 2)], "2 lost"),
        (Bytes(busy), FaultAt::Any, "", &[("wrong", 2)], "2 lost"),
        (Bytes(other), FaultAt::Kept, "--body okay", &[("wrong", 2)], "2 lost"),
        (Bytes(other), FaultAt::Kept, "", &[], "nothing was lost"),
        (Bytes(okay), FaultAt::Post, "--echo", &[("wrong", 2)], "2 lost"),
        (Bytes(okay), FaultAt::Post, "", &[], "nothing was lost"),
        (Leave(last), FaultAt::Kept, "", &[("told", 2)], "nothing was lost"),
        (Leave(okay), FaultAt::Kept, "", &[("untold", 2)], "nothing was lost"),
        (
            Leave(last),
            FaultAt::Kept,
            "--seamless",
            &[("told", 2)],
            "2 connections closed by the server",
        ),
        (Leave(okay), FaultAt::Kept, "--blind", &[("crossed", 2), ("untold", 2)], "2 lost"),
    ] {
        case(&format!("{fault:?} {on:?} {flags}"), || {
            assert_counted(fault, on, flags, rows, verdict)
        });
    }
}

/// A request without an answer counts as lost when its time is over.
#[test]
fn silence_is_counted() {
    assert_counted(Fault::Never, FaultAt::Any, "--patience 2s", &[("stalled", 2)], "2 lost");
}

fn assert_counted(fault: Fault, on: FaultAt, flags: &str, rows: &[(&str, u64)], verdict: &str) {
    let directory = Directory::new();
    let server = FaultyServer::start(directory.join("fault"), fault, on);
    let flags = format!("--restarts 2 --clients 6 --post /echo --pause 50ms {flags}");
    let output = server.check(&flags);
    let report = text(&output.stdout);
    let said = text(&output.stderr);
    for name in FAULTS {
        let wanted = rows.iter().find(|(row, _)| *row == name).map_or(0, |(_, n)| *n);
        assert_eq!(number(&report, name), wanted, "{name}: {report}{said}");
    }
    let lost = ["crossed", "reset", "cut", "wrong", "stalled"];
    let lost: u64 = lost.iter().map(|name| number(&report, name)).sum();
    // The number includes faults that are right answers, and leaves out the two requests before the
    // load.
    let right = if matches!(fault, Fault::Leave(_)) { 2 } else { 2 - lost };
    let answered = server.served.load(SeqCst) + right - 2;
    assert_eq!(number(&report, "answered"), answered, "{report}");
    assert_eq!(number(&report, "asked"), server.asked.load(SeqCst), "{report}");
    assert!(report.ends_with(&format!(" with 6 clients: {verdict}\n")), "{report}");
    let code = i32::from(!verdict.starts_with("nothing"));
    assert_eq!(output.status.code(), Some(code), "{report}{said}");

    // Each restart has one fault.
    let lines: Vec<_> = said.lines().collect();
    let closed = number(&report, "told") + number(&report, "untold");
    let (lost, closed) = (lost / 2, closed / 2);
    assert_eq!(lines.len(), 2, "{said}");
    for (number, line) in (1..).zip(lines) {
        assert!(line.starts_with(&format!("restart {number} of 2 took ")), "{line}");
        let counts = format!(" s: 0 refused, {lost} lost, {closed} closed, slowest ");
        assert!(line.contains(&counts), "{line}, not{counts}");
    }
}

/// The first losses are described, with the kind of request and the observation.
#[test]
fn losses_are_described() {
    let directory = Directory::new();
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\nno!";
    let server = FaultyServer::start(directory.join("fault"), Fault::Bytes(busy), FaultAt::Slow);
    let flags = "--restarts 1 --clients 1 --slow /slow --pause 50ms";
    let output = server.check(flags);
    let report = text(&output.stdout);
    assert!(report.contains(", wrong: slow GET, keep-alive, by client 1 (127.0.0.1:"), "{report}");
    assert!(report.contains(": status 503, \"no!\"\n"), "{report}");
}

/// A late answer is the longest of all answers, of those near the restart, and of the restart.
#[test]
fn times_are_measured() {
    let directory = Directory::new();
    let server = FaultyServer::start(directory.join("fault"), Fault::Late, FaultAt::Any);
    let output = server.check("--restarts 1 --clients 3 --pause 100ms");
    let (report, said) = (text(&output.stdout), text(&output.stderr));
    let between = |text: &str, before: &str, after: &str| -> f64 {
        let rest = text.split_once(before).unwrap_or_else(|| panic!("{before}: {text}")).1;
        rest.split_once(after).unwrap().0.parse().unwrap()
    };
    assert!(between(&said, ", slowest ", " ms") >= LATE.as_millis() as f64, "{said}");
    assert!(report.contains("\n1 restart, the longest took "), "{report}");
    for row in ["answered", "  near"] {
        let line = report.lines().find(|line| line.starts_with(row)).unwrap();
        let longest = line.rsplit(" took ").next().unwrap();
        let longest = match (longest.strip_suffix("ms"), longest.strip_suffix('s')) {
            (Some(millis), _) => millis.parse::<f64>().unwrap(),
            (_, Some(seconds)) => seconds.parse::<f64>().unwrap() * 1000.0,
            _ => panic!("{line}"),
        };
        assert!(longest >= LATE.as_millis() as f64, "{line}");
    }
}

/// If no process listens for a while, clients are refused, and wait. This counts as a fault only if
/// a flag says so.
#[test]
fn refused_clients_are_counted() {
    for (flags, code) in [("", 0), ("--none-refused", 1), ("--seamless", 1)] {
        let directory = Directory::new();
        let (path, picture) = (directory.join("app.sock"), directory.join("picture.svg"));
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    while read_request(&mut stream).is_some() {
                        let okay = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nokay";
                        if stream.write_all(okay).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        // This is the outage, in which a client without a connection has to come.
        let (from, to) = (path.display(), directory.join("away"));
        let script = format!("mv {from} {0}; sleep 0.5; mv {0} {from}", to.display());
        let mut command = Command::new(SERVER);
        command.args(["check", &format!("unix:{from}"), "--restarts", "1", "--pause", "100ms"]);
        command.arg("--svg").arg(&picture).args(flags.split_terminator(' '));
        let output = output_within(command.args(["--", "sh", "-c", &script]), b"", PATIENCE);
        let report = text(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{report}{}", text(&output.stderr));
        let refused = number(&report, "refused");
        assert!(refused >= 1, "{report}");
        let attempts = report.split("nothing was sent; ").nth(1).unwrap();
        let attempts: u64 = attempts.split(' ').next().unwrap().parse().unwrap();
        assert!(attempts > refused, "each client tries again: {report}");
        let last = report.lines().last().unwrap();
        let verdict =
            if code == 0 { "nothing was lost".into() } else { format!("{refused} refused") };
        assert!(last.ends_with(&verdict), "{last}");

        let picture = fs::read_to_string(&picture).unwrap();
        let picture = Document::parse(&picture).unwrap();
        assert!(marks(&picture, "refused") > 0);
        assert_eq!((marks(&picture, "restart"), marks(&picture, "lost")), (1, 0));
    }
}

// A good server.

/// The server is stopped and started, which refuses clients and closes their connections, and loses
/// nothing.
#[test]
fn a_server_that_binds_anew_loses_nothing() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let page = directory.join("report.html");
    let addr = common::free_port();
    let rebind = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/restart/rebind");
    let serve = format!("{SERVER} --listen {addr} --syn-filter");
    let mut command = Command::new(&rebind);
    assert!(command.arg(&file).args(serve.split(' ')).status().unwrap().success());
    let server = ProcessOfPidFile(&file);
    common::wait_until("the server listens", || TcpStream::connect(addr).is_ok());

    let mut check = Command::new(SERVER);
    check.args(["check", &addr.to_string(), "--work", "5ms", "--idle", "8", "--seamless"]);
    check.args(["--restarts", "2", "--pause", "300ms", "--title", "<Bound anew>", "--report"]);
    check.arg(&page).arg("--").arg(&rebind).arg(&file).args(serve.split(' '));
    let output = output_within(&mut check, b"", 2 * PATIENCE);
    drop(server);
    let (report, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{report}{said}");
    for name in ["reset", "cut", "wrong", "stalled"] {
        assert_eq!(number(&report, name), 0, "{report}");
    }
    let (told, untold) = (number(&report, "told"), number(&report, "untold"));
    assert!(told + untold > 0, "{report}");
    let closed = format!("{} connections closed by the server", told + untold);
    assert!(report.lines().last().unwrap().contains(&closed), "{report}");

    // The page has the same numbers.
    let page = fs::read_to_string(&page).unwrap();
    for outside in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let page = read(&page);
    let title = page.descendants().find(|node| node.has_tag_name("title")).unwrap();
    assert_eq!(title.text(), Some("<Bound anew>"));
    let rows = table(&page, "report");
    assert_eq!(rows.len(), 11);
    for row in rows {
        let name = &*row[0];
        let plain = row[1].replace(',', "");
        assert_eq!(plain, number(&report, name).to_string(), "{name}");
        assert!(report.contains(&*row[2]), "{row:?}: {report}");
    }
    let restarts = table(&page, "restarts");
    assert_eq!(restarts.len(), 3, "a head and two restarts");
    for (row, line) in restarts[1..].iter().zip(said.lines()) {
        let counts = format!("{} refused, {} lost, {} closed", row[2], row[3], row[4]);
        assert!(line.contains(&counts), "{row:?}: {line}");
    }
    assert_eq!(marks(&page, "restart"), 2);
    let settings = table(&page, "settings");
    assert!(settings.iter().any(|row| **row == ["Server", &*addr.to_string()]), "{settings:?}");
}

/// Without a command the check only sends requests, to the path of the URL, with the given fields.
#[test]
fn a_server_is_checked_without_a_restart() {
    let mut server = Program::server(&["--work", "0s"]);
    let url = format!("http://{}/livez", server.addr);
    for args in [
        vec![&*url, "--body", "live\n"],
        vec![&*url, "--path", "/work?for=1ms", "--body", "okay"],
        vec![&*url, "--header", "Accept: text/plain", "--header", "Host:x"],
        vec![&*url, "--post", "/echo", "--echo"],
    ] {
        let mut command = Command::new(SERVER);
        command.arg("check").args(&args).args(["--duration", "200ms", "--seamless"]);
        let output = output_within(&mut command, b"", PATIENCE);
        let (report, said) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?}: {report}{said}");
        let end = " with 16 clients: no client has noticed anything\n";
        assert!(report.contains("\nno restart; ") && report.ends_with(end), "{report}");
        assert!(number(&report, "answered") > 16, "{report}");
        assert_eq!(said, "");
    }
    server.stop();
}

// Mistakes.

/// If there is no server to check, one line says so, and the exit code is 1.
#[test]
fn a_server_that_cannot_be_checked_costs_one_line() {
    let directory = Directory::new();
    let nobody = common::free_port().to_string();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let good = FaultyServer::start(directory.join("fault"), Fault::Never, FaultAt::Post);
    let (addr, url) = (good.addr.to_string(), format!("http://{}/nothing", good.addr));
    let missing = format!("unix:{}", directory.join("missing").display());
    for (args, line) in [
        (vec![&*nobody], format!("cannot connect to {nobody}: Connection refused")),
        (vec![&*missing], format!("cannot connect to {missing}: No such file or directory")),
        (vec!["nobody.invalid:80"], "cannot find the host of nobody.invalid:80: ".into()),
        (
            vec![&*silent, "--patience", "100ms"],
            format!("{silent} has no right answer to `GET / HTTP/1.1`: no answer within 100ms"),
        ),
        (
            vec![&*url],
            format!("{addr} has no right answer to `GET /nothing HTTP/1.1`: status 404, \"no\""),
        ),
        (
            vec![&*addr, "--post", "/nothing"],
            format!("{addr} has no right answer to `POST /nothing HTTP/1.1`: status 404, \"no\""),
        ),
        (
            vec![&*addr, "--svg", "/dev/null/picture.svg"],
            "cannot write /dev/null/picture.svg: Not a directory".into(),
        ),
        (
            vec![&*addr, "--pause", "1ms", "--", "/nonexistent/restart"],
            "restart 1 of 10: `/nonexistent/restart` cannot be run: No such file or".into(),
        ),
        (
            vec![&*addr, "--pause", "1ms", "--restarts", "1", "--", "sh", "-c", "exit 3"],
            "restart 1 of 1: `sh` failed: exit status: 3".into(),
        ),
    ] {
        let output = output_within(Command::new(SERVER).arg("check").args(&args), b"", PATIENCE);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with(&format!("smol-graceful check: {line}")), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    }
}

/// A restart that fails ends the load. The report has the counts up to then.
#[test]
fn a_restart_that_fails_is_reported() {
    let directory = Directory::new();
    let page = directory.join("report.html");
    let good = FaultyServer::start(directory.join("fault"), Fault::Never, FaultAt::Post);
    let script = format!("mkdir {}", directory.join("once").display());
    let mut command = Command::new(SERVER);
    command.args(["check", &good.addr.to_string(), "--restarts", "3", "--pause", "50ms"]);
    command.arg("--report").arg(&page).args(["--", "sh", "-c", &script]);
    let output = output_within(&mut command, b"", PATIENCE);
    let (report, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}");
    let wrong = "restart 2 of 3: `sh` failed: exit status: 1";
    assert!(said.ends_with(&format!("smol-graceful check: {wrong}\n")), "{said}");
    assert_eq!(number(&report, "answered"), good.served.load(SeqCst) - 1, "without the first");

    let page = fs::read_to_string(&page).unwrap();
    let page = read(&page);
    let verdict = page.descendants().find(|node| node.attribute("class") == Some("verdict bad"));
    assert_eq!(verdict.unwrap().text(), Some(wrong));
    assert_eq!((table(&page, "restarts").len(), marks(&page, "restart")), (2, 2));
}

/// If the command line is wrong, one line says so, and the exit code is 2.
#[test]
fn wrong_usage_costs_one_line() {
    for (args, wrong) in [
        ("", "<URL|ADDR>"),
        ("8082", "invalid value '8082' for '<URL|ADDR>': write http://127.0.0.1:8082/path, "),
        ("https://a.test/", "no TLS"),
        (":1 --clients 0", "0 is not in 1..=1000"),
        (":1 --idle 20001", "20001 is not in 0..=20000"),
        (":1 --restarts 2", "--restarts has no effect without -- COMMAND: give that, or leave"),
        (":1 --pause 2s", "--pause has no effect without -- COMMAND: "),
        (":1 --every 2s", "--every has no effect without -- COMMAND: "),
        (":1 --title x", "--title has no effect without --report FILE.html or --svg FILE.svg: "),
        (":1 --scale 9", "--scale has no effect without --report FILE.html or --svg FILE.svg: "),
        (":1 --duration 1s -- true", "cannot be used with"),
        (":1 --work 1ms --post /a", "cannot be used with"),
        (":1 --echo", "--echo has no effect without --post PATH: "),
        (":1 --path a", "a path begins with `/`"),
        (":1 --header a", "write a field as NAME:VALUE"),
        (":1 --header Connection:close", "choose the field Connection themselves"),
        (":1 --pause soon", "--pause <DURATION>"),
        (":1 true", "write `--` in front of COMMAND"),
        (":1 --seamles", "unexpected argument '--seamles' found"),
    ] {
        let mut command = Command::new(SERVER);
        command.arg("check").args(args.split_terminator(' '));
        // The check ignores the server's variables.
        command.env("SMOL_GRACEFUL_LISTEN", "nowhere");
        let output = output_within(&mut command, b"", PATIENCE);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(
            said.starts_with("smol-graceful check: ") && said.contains(wrong),
            "{args}: {said}"
        );
        assert!(said.ends_with("; `smol-graceful check --help` tells more\n"), "{args}: {said}");
        assert_eq!(said.lines().count(), 1, "{args}: {said}");
    }
}

// The tools of the tests above.

/// Returns the number of a row of a report.
fn number(report: &str, name: &str) -> u64 {
    let mut rows = report.lines().map(str::split_whitespace);
    let row = rows.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()));
    row.flatten().unwrap_or_else(|| panic!("no {name} in {report}")).parse().unwrap()
}

/// Returns the number of marks of this kind in a picture, without those of its key.
fn marks(picture: &Document<'_>, class: &str) -> usize {
    picture.descendants().filter(|node| node.attribute("class") == Some(class)).count()
}

/// Reads a page.
fn read(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(page, options).unwrap()
}

/// Returns the cells of a table.
fn table(page: &Document<'_>, id: &str) -> Vec<Vec<String>> {
    let table = page.descendants().find(|node| node.attribute("id") == Some(id)).unwrap();
    let rows = table.children().filter(|node| node.has_tag_name("tr"));
    rows.map(|row| row.children().map(|cell| cell.text().unwrap_or_default().to_owned()).collect())
        .collect()
}

/// The process that a pid file names. The drop ends the process.
struct ProcessOfPidFile<'a>(&'a Path);

impl Drop for ProcessOfPidFile<'_> {
    fn drop(&mut self) {
        let text = fs::read_to_string(self.0).unwrap();
        let process = ProcessId(Pid::from_raw(text.trim_end().parse().unwrap()).unwrap());
        process.signal(Signal::TERM);
        common::wait_until("the server has ended", || !process.is_running());
    }
}
