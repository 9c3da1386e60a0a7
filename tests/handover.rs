//! Restarts that no client notices: each kind of connection goes to the successor, over TCP and
//! over Unix sockets, and is the same connection before and after.

#![cfg(target_os = "linux")]

mod common;

use common::handover::{self, Handover, over_both};

/// Idle connections go from one process to the next, ten times in a row.
#[test]
fn idle_connections_outlive_ten_restarts() {
    over_both(|over| {
        let mut server = Handover::server(over, &[]);
        let mut clients: Vec<_> = (0..3).map(|_| server.idle()).collect();
        for _ in 0..10 {
            server.hand_over(3);
            for client in &mut clients {
                let response = client.get("/livez").response();
                assert_eq!((&*response.text(), response.says_close()), ("live\n", false));
            }
        }
        server.end();
    });
}

/// Serves if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}
