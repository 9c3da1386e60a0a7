//! The files in `deploy/` for restarts without the keeper, for the access log and for metrics. Each
//! test runs a file with its program, and with only ports and paths replaced. Restarts are under a
//! load that checks every answer (`smol-graceful check`). `deploy_keeper.rs` runs the files that
//! start the keeper.
//!
//! All tests use 127.0.0.1 alone. A test that needs a Debian package is ignored by default.
//! `.ci/run` installs the packages and runs all tests.

#![cfg(target_os = "linux")]

mod common;
#[path = "deploy/files.rs"]
mod files;
#[path = "../src/main/check/load.rs"]
mod load;
#[path = "deploy/supervisord.rs"]
mod supervisord;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use common::{
    Client, Directory, PATIENCE, Program, Proxy, Running, SERVER, case, free_port, installed,
    wait_until,
};
use files::{Deployment, INSTALLED, text_of};
use load::{Load, Report, Tally, Target};
use rustix::process::Signal;
use smol_graceful::Request;
use supervisord::Supervisord;

/// With `[fcgi-program]`, supervisord holds the socket, and two processes share it and are
/// restarted in turn.
#[test]
#[ignore = "needs supervisord (supervisor)"]
fn supervisord_holds_the_socket() {
    let supervisord = Supervisord::start("fcgi-program.conf");
    let (report, ()) = under_load(supervisord.deployment.addr, |tally| {
        for turn in 0..10 {
            let said = supervisord.ctl(&["restart", ["app:app_00", "app:app_01"][turn % 2]]);
            assert!(said.contains(": started"), "{said}{}", supervisord.log());
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
}

/// systemd's own tool passes a socket with a name.
#[test]
#[ignore = "needs systemd-socket-activate (systemd)"]
fn systemd_activates_it() {
    let addr = free_port();
    let mut command = installed("systemd-socket-activate", "systemd");
    command.args(["-l", &addr.to_string(), "--fdname=http", SERVER, "--work", "0s"]);
    // systemd starts the server with the first client.
    let first = thread::spawn(move || {
        wait_until("a socket", || TcpStream::connect(addr).is_ok());
        Client::connect(addr).get("/").response().text()
    });
    let mut server = Program::start(command);
    assert_eq!(first.join().unwrap(), "okay");
    assert_eq!(server.addr, addr);
    server.stop();
    assert!(server.log().contains(&format!("listening on {addr} (inherited)")));
}

/// systemd accepts the units without a warning.
#[test]
#[ignore = "needs systemd-analyze (systemd)"]
fn systemd_units_are_well_formed() {
    let directory = Directory::new();
    for unit in ["smol-graceful.socket", "smol-graceful.service"] {
        let text = text_of(&format!("systemd/{unit}"));
        fs::write(directory.join(unit), text.replace(INSTALLED, SERVER)).unwrap();
    }
    let mut command = installed("systemd-analyze", "systemd");
    command.arg("verify").current_dir(directory.path());
    let output =
        command.args(["./smol-graceful.socket", "./smol-graceful.service"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Two replicas behind HAProxy, rolled one after the other with a lame duck.
#[test]
#[ignore = "needs haproxy"]
fn haproxy_rolls_two_replicas() {
    let replicas = [free_port(), free_port()];
    let mut proxy = haproxy(replicas);
    let start = |n: usize| replica(replicas[n], &["--lame-duck", "3s"]);
    let mut servers = [start(0), start(1)];
    wait_for_all_up(&mut proxy);
    let (report, ()) = under_load(proxy.addr, |tally| {
        for n in [0, 1, 0, 1] {
            servers[n].signal(Signal::TERM);
            assert_eq!(servers[n].exit_code(), 0, "{}", servers[n]);
            servers[n] = start(n);
            proxy.wait_for(&format!("replica{} is UP", n + 1));
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
}

/// nginx loses no request either. Debian's nginx has no active checks, so the server needs no lame
/// duck.
#[test]
#[ignore = "needs nginx"]
fn nginx_rolls_two_replicas() {
    let replicas = [free_port(), free_port()];
    let start = |n: usize| replica(replicas[n], &["--syn-filter"]);
    let mut servers = [start(0), start(1)];
    let proxy = nginx(replicas);
    let (report, ()) = under_load(proxy.addr, |tally| {
        for n in [0, 1, 0, 1, 0, 1, 0, 1, 0, 1] {
            servers[n].signal(Signal::TERM);
            assert_eq!(servers[n].exit_code(), 0, "{}", servers[n]);
            servers[n] = start(n);
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
}

/// A client cannot forge its address.
#[test]
#[ignore = "needs haproxy"]
fn haproxy_lets_no_client_forge_its_address() {
    let server = who_are_you();
    assert_nothing_is_forged(&haproxy([server.addr(); 2]));
}

/// A client cannot forge its address.
#[test]
#[ignore = "needs nginx"]
fn nginx_lets_no_client_forge_its_address() {
    let server = who_are_you();
    assert_nothing_is_forged(&nginx([server.addr(); 2]));
}

/// In every file, the supervisor waits longer than lame duck and grace.
#[test]
fn supervisors_wait_longer_than_the_grace() {
    let number = |file: &str, key: &str| -> u64 {
        let text = text_of(file);
        let line = text.lines().map(str::trim).find(|line| line.starts_with(key));
        let value = line.unwrap_or_else(|| panic!("no {key} in {file}")).trim_start_matches(key);
        value.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    };
    for (file, key) in [
        ("supervisord/fcgi-program.conf", "stopwaitsecs="),
        ("supervisord/program.conf", "stopwaitsecs="),
        ("systemd/smol-graceful.service", "TimeoutStopSec="),
        ("kubernetes/deployment.yaml", "terminationGracePeriodSeconds:"),
    ] {
        let text = text_of(file);
        let seconds = |flag: &str| -> u64 {
            let rest = text.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
            let value = rest.filter_map(|line| line.split_once(flag)).map(|(_, rest)| {
                let rest = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
                rest.chars().take_while(char::is_ascii_digit).collect::<String>()
            });
            value.max().map_or(0, |value| value.parse().unwrap())
        };
        let own = seconds("--grace") + seconds("--lame-duck");
        assert!(own >= 30, "{file}: {own}");
        assert!(number(file, key) > own, "{file}");
    }
}

/// Debian's logrotate renames and compresses the file under load. Each request has its line in one
/// of the files, and the server makes each new file.
#[test]
#[ignore = "needs logrotate"]
fn logrotate_loses_no_line() {
    let deployment = Deployment::new();
    let logs = deployment.directory.join("smol-graceful");
    fs::create_dir(&logs).unwrap();
    let (log, config) = (logs.join("access.log"), deployment.directory.join("logrotate"));
    fs::write(&config, deployment.adapt("logrotate/smol-graceful")).unwrap();
    let mut server = Program::server(&["--work", "0s", "--access-log", log.to_str().unwrap()]);
    let mut client = server.connect();
    let mut asked = 0;
    let mut ask = || {
        assert_eq!(client.get("/").response().text(), "okay");
        asked += 1;
    };
    for _ in 0..3 {
        wait_until("the server has made its file", || {
            ask();
            log.exists()
        });
        let mut logrotate = installed("logrotate", "logrotate");
        logrotate
            .arg("--force")
            .arg("--state")
            .arg(deployment.directory.join("state"))
            .arg(&config);
        common::run_ok(&mut logrotate, b"");
        assert!(!log.exists());
        // These lines may still go to the old file.
        (0..10).for_each(|_| ask());
    }
    server.stop();
    let mut names: Vec<_> =
        fs::read_dir(&logs).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    let [first, .., last] = &names[..] else { panic!("{names:?}") };
    assert_eq!((first.to_str(), last.to_str()), (Some("access.log.1"), Some("access.log.3.gz")));
    let mut zcat = Command::new("zcat");
    let all =
        common::run_ok(zcat.arg("--force").args(names.iter().map(|name| logs.join(name))), b"");
    assert_eq!(common::text(&all).lines().count(), asked);
}

/// Prometheus' own tool reads the file. Debian's version does not know Kubernetes, so the test
/// leaves out the targets of the Pods.
#[test]
#[ignore = "needs promtool"]
fn prometheus_takes_the_file() {
    let directory = Directory::new();
    let pods = "kubernetes_sd_configs:\n      - role: pod\n";
    let text = text_of("prometheus/prometheus.yml");
    assert!(text.contains(pods));
    let config = directory.join("prometheus.yml");
    fs::write(&config, text.replace(pods, "static_configs: []\n")).unwrap();
    let mut promtool = installed("promtool", "prometheus");
    common::run_ok(promtool.args(["check", "config"]).arg(&config), b"");
}

/// All files have the same port for operators.
#[test]
fn the_admin_port_is_the_same_everywhere() {
    let lines = |file: &str, words: &[&str]| {
        let text = text_of(file);
        for words in words {
            assert!(text.lines().any(|line| line.contains(words)), "no {words} in {file}");
        }
    };
    lines("systemd/smol-graceful.service", &["--admin 127.0.0.1:9082 "]);
    lines("prometheus/prometheus.yml", &["targets: [\"127.0.0.1:9082\"]"]);
    let pod = ["\"--admin\", \":9082\"", "prometheus.io/port: \"9082\"", "containerPort: 9082"];
    lines("kubernetes/deployment.yaml", &pod);
    let probes = text_of("kubernetes/deployment.yaml");
    assert_eq!(probes.matches("port: admin\n").count(), 2);
}

// The tools of the tests above.

/// Runs `during` under a load of 16 clients of all kinds, with requests of up to 50 ms.
fn under_load<T>(addr: SocketAddr, during: impl FnOnce(&Tally) -> T) -> (Report, T) {
    let (report, made) = Load::new(Target::Tcp(addr)).run(during).unwrap();
    assert!(report.answered > 100, "{report}");
    (report, made)
}

fn replica(addr: SocketAddr, args: &[&str]) -> Program {
    let mut command = Command::new(SERVER);
    command.args(["--listen", &addr.to_string(), "--grace", "30s"]).args(args);
    Program::start(command)
}

/// The fields by which a proxy passes its client's address on.
const FORWARDED: [&str; 5] =
    ["x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-host", "forwarded"];

/// Answers each request with the fields that the handler sees.
fn who_are_you() -> Running {
    Running::new(|request: Request| async move {
        let told = FORWARDED.map(|name| {
            let values = request.header(name).into_iter().flatten();
            format!("{name}: {}", values.map(ToString::to_string).collect::<Vec<_>>().join(" and "))
        });
        let http_types = format!("{:?} {:?}", request.remote(), request.host());
        Ok(format!("{}\n{http_types}", told.join("\n")))
    })
}

/// Sends all of these fields, as a client that forges its address, and asserts that none arrives.
fn assert_nothing_is_forged(proxy: &Proxy) {
    let honest = "x-forwarded-for: 127.0.0.1\nx-real-ip: 127.0.0.1\nx-forwarded-proto: http\n\
        x-forwarded-host: \nforwarded: \nSome(\"127.0.0.1\") Some(\"host.test\")";
    for forged in [
        "",
        "X-Forwarded-For: 192.0.2.1\r\n",
        "x-forwarded-for: 192.0.2.1, 192.0.2.2\r\n",
        "X-Forwarded-For: 192.0.2.1\r\nX-FORWARDED-FOR: 192.0.2.2\r\n",
        "X-Forwarded-For:\r\n",
        "X-Real-IP: 192.0.2.1\r\n",
        "Forwarded: for=192.0.2.1;host=evil.test;proto=https\r\n",
        "Forwarded: for=192.0.2.1\r\nForwarded: for=192.0.2.2\r\n",
        "X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n",
        // A proxy drops the fields that `Connection` lists, but not the fields that it has set
        // itself.
        "X-Forwarded-For: 192.0.2.1\r\nConnection: x-forwarded-for, x-real-ip\r\n",
    ] {
        case(forged, || {
            let mut client = Client::connect(proxy.addr);
            client.send(format!("GET / HTTP/1.1\r\nHost: host.test\r\n{forged}\r\n"));
            assert_eq!(client.response().text(), honest);
        });
    }
}

/// Starts HAProxy in front of two replicas, with the file in `deploy/`.
fn haproxy(replicas: [SocketAddr; 2]) -> Proxy {
    Proxy::haproxy(|directory, addr, _| adapt("haproxy/haproxy.cfg", directory, addr, replicas))
}

/// Starts nginx in front of two replicas, with the file in `deploy/`.
fn nginx(replicas: [SocketAddr; 2]) -> Proxy {
    Proxy::nginx(|directory, addr, _| adapt("nginx/nginx.conf", directory, addr, replicas))
}

/// Returns a file of `deploy/` with other addresses and another directory.
fn adapt(
    file: &str,
    directory: &Path,
    addr: SocketAddr,
    [first, second]: [SocketAddr; 2],
) -> String {
    let directory = directory.to_str().unwrap();
    let mut text = text_of(file);
    for (ours, here) in [
        ("127.0.0.1:8080", &*addr.to_string()),
        ("127.0.0.1:8091", &first.to_string()),
        ("127.0.0.1:8092", &second.to_string()),
        ("/run/", &format!("{directory}/")),
        ("/var/log/nginx", directory),
        ("/var/lib/nginx", directory),
    ] {
        text = text.replace(ours, here);
    }
    text
}

/// Waits until HAProxy has found both replicas healthy.
fn wait_for_all_up(haproxy: &mut Proxy) {
    haproxy.wait_for("is UP");
    haproxy.wait_for("is UP");
}
