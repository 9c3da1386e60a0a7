//! The server under programs that start it, each as an operator uses it: s6's binder, systemd's
//! tool, a supervisord whose server starts programs of its own, and foreman.
//!
//! All tests use 127.0.0.1 alone. A test that needs a Debian package is ignored by default.
//! `.ci/run` installs the packages and runs all tests. tests/deploy.rs runs the files in `deploy/`.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;

use common::{
    Client, Directory, Program, SERVER, assert_all_okay, clients_in_queue, free_port, installed,
    is_refused, terminate, wait_until,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// S5: s6's binder makes the socket and then becomes the server, so no other process has the
/// socket. The server serves the queue and removes the file.
#[test]
#[ignore = "needs s6-ipcserver-socketbinder (s6)"]
fn s6_binds_the_socket() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let mut command = installed("s6-ipcserver-socketbinder", "s6");
    command.args(["-b", "1000"]).arg(&path).args([SERVER, "--listen", "fd:0", "--threads", "1"]);
    let mut server = Program::start(command);
    server.signal(Signal::STOP);
    let clients: Vec<_> = (0..300)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"GET /work?for=0s HTTP/1.0\r\n\r\n").unwrap();
            client
        })
        .collect();
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    for mut client in clients {
        let mut response = String::new();
        client.read_to_string(&mut response).unwrap();
        assert!(response.ends_with("okay"), "{response}");
    }
    assert_eq!(server.exit_code(), 0, "{server}");
    assert!(!path.exists());
}

/// S5: systemd's tool becomes the server, too.
#[test]
#[ignore = "needs systemd-socket-activate (systemd)"]
fn systemd_socket_activate_binds_the_socket() {
    let addr = free_port();
    let mut command = installed("systemd-socket-activate", "systemd");
    command.args(["-l", &addr.to_string(), SERVER, "--threads", "1"]);
    // The tool becomes the server at the first client.
    let first = thread::spawn(move || {
        wait_until("a socket", || TcpStream::connect(addr).is_ok());
    });
    let mut server = Program::start(command);
    first.join().unwrap();
    server.signal(Signal::STOP);
    let clients = clients_in_queue(addr, 300);
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    assert_all_okay(clients);
    assert_eq!(server.exit_code(), 0, "{server}");
    assert!(is_refused(addr));
}

/// supervisord binds the address again although a program that a handler has started still runs.
#[test]
#[ignore = "needs supervisord (supervisor)"]
fn supervisord_starts_a_server_whose_programs_still_run() {
    let directory = Directory::new();
    let dir = directory.path().display();
    let addr = free_port();
    let example = Program::example_command("command", &[]);
    let example = example.get_program().to_str().unwrap();
    let config = directory.join("supervisord.conf");
    let text = format!(
        "[unix_http_server]\nfile={dir}/ctl\n\
         [supervisord]\nnodaemon=true\nlogfile={dir}/log\npidfile={dir}/pid\n\
         [rpcinterface:supervisor]\n\
         supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
         [supervisorctl]\nserverurl=unix://{dir}/ctl\n\
         [fcgi-program:app]\nsocket=tcp://{addr}\ncommand={example} fd:0\nstartsecs=0\n\
         stdout_logfile=NONE\nstderr_logfile=NONE\n"
    );
    fs::write(&config, text).unwrap();
    let mut command = installed("supervisord", "supervisor");
    command.arg("-c").arg(&config);
    let _supervisord = Launcher::start(command);
    let ctl = |args: &[&str]| {
        let mut command = installed("supervisorctl", "supervisor");
        let output = command.arg("-c").arg(&config).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // supervisord also binds the address when it reads its configuration, and closes it at once. A
    // client of that moment is reset.
    wait_until("the server runs", || ctl(&["status"]).contains("RUNNING"));
    let left: Vec<i32> = (0..3)
        .map(|_| {
            let told = Client::connect(addr).get("/leave/600").response().text();
            told.trim_start_matches("process ").trim().parse().unwrap()
        })
        .collect();
    assert!(ctl(&["stop", "app"]).contains("app: stopped"));
    assert!(is_refused(addr), "a program still has the socket");
    let said = ctl(&["start", "app"]);
    assert!(said.contains("app: started"), "{said}");
    wait_until("the server answers again", || TcpStream::connect(addr).is_ok());
    for pid in left {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}

/// S14: a terminal's Ctrl-C reaches the server and foreman, which then sends TERM to the server, up
/// to a tenth of a second later. Both are one stop.
#[test]
#[ignore = "needs foreman (ruby-foreman)"]
fn foreman_passes_one_stop_twice() {
    let directory = Directory::new();
    let addr = free_port();
    let log = directory.join("log");
    let procfile = directory.join("Procfile");
    let line = format!(
        "web: RUST_LOG=smol_graceful=debug exec {SERVER} --listen {addr} --work 0s --repeat-window 2s 2>{}\n",
        log.display()
    );
    fs::write(&procfile, line).unwrap();
    let mut command = installed("foreman", "ruby-foreman");
    command.arg("start").arg("-f").arg(&procfile).current_dir(directory.path());
    let mut foreman = Launcher::start(command);
    wait_until("the server answers", || TcpStream::connect(addr).is_ok());
    let mut client = Client::connect(addr);
    client.send("GET /work?for=0s HTTP/1.1\r\nHo");
    // When this is answered, the server has read the first bytes of the other request.
    Client::connect(addr).get("/livez").response();
    kill_process_group(foreman.pid(), Signal::INT).unwrap();
    let log = || fs::read_to_string(&log).unwrap();
    wait_until("both signals have come", || log().contains("first stop signal: the same stop"));
    assert_eq!(client.send("st: x\r\n\r\n").response().text(), "okay");
    wait_until("foreman has ended", || foreman.0.try_wait().unwrap().is_some());
    assert!(log().contains("drained in "), "{}", log());
}

/// A program that starts the server, in a process group of its own. The drop stops it.
struct Launcher(Child);

impl Launcher {
    fn start(mut command: Command) -> Self {
        use std::os::unix::process::CommandExt;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.process_group(0).spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap()
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        terminate(&mut self.0);
    }
}
