// SPDX-License-Identifier: Apache-2.0
//! Threads and a process; the standard library looks newer functions of libc up by dlsym.

use std::process::Command;
use std::thread;

fn main() {
    let workers: Vec<_> = (0..8u64).map(|n| thread::spawn(move || n * n)).collect();
    let sum: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    let said = Command::new("echo").arg("from a process").output().unwrap();
    print!("threads: {}, {}", sum, String::from_utf8_lossy(&said.stdout));
}
