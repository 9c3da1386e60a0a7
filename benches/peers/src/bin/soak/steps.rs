//! The mix: the steps of a client, and the expected answers.
//!
//! A client keeps its connection from one step to the next, until a step ends it. A request is
//! begun when its first byte is sent. Then it is answered rightly, left by its client, or failed.

use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use fastrand::Rng;
use smol::{Timer, future};

use crate::wire::{Answer, Wire, wrong};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const DOWNLOAD: &[u8] = b"GET /download HTTP/1.1\r\nHost: localhost\r\n\r\n";
const PIPELINE: u64 = 16;
/// The largest length of a body, in bits. Most bodies are much shorter.
const BODY_BITS: u32 = 18;
/// The longest time of a step.
const PATIENCE: Duration = Duration::from_secs(25);
/// The number of failures after which a client gives up.
const FAILURES: u32 = 5;

/// The weight of each step.
pub const STEPS: [(u32, Step); 14] = [
    (40, Step::Gets),
    (30, Step::Pipeline),
    (6, Step::Mixed),
    (12, Step::Upload),
    (8, Step::Echo),
    (1, Step::Download),
    (3, Step::HalfClose),
    (3, Step::Last),
    (8, Step::CutPipeline),
    (8, Step::CutUpload),
    (4, Step::CutEcho),
    (2, Step::LeaveDownload),
    (4, Step::HalfHead),
    (6, Step::Nothing),
];

#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// `GET /`, one after the other.
    Gets,
    /// Sixteen `GET /` in one write.
    Pipeline,
    /// `GET /`, uploads and echoes in one write.
    Mixed,
    Upload,
    Echo,
    Download,
    /// A pipeline whose client closes its side, and reads all the answers.
    HalfClose,
    /// `GET /` with `Connection: close`.
    Last,
    /// A pipeline that ends at a random byte, of which some answers are read.
    CutPipeline,
    /// An upload that ends at a random byte.
    CutUpload,
    /// An echo that ends at a random byte.
    CutEcho,
    /// A download whose client leaves after a random number of bytes.
    LeaveDownload,
    HalfHead,
    /// An idle connection and one that was just opened are left.
    Nothing,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gets => "one after the other",
            Self::Pipeline => "pipeline",
            Self::Mixed => "pipeline with bodies",
            Self::Upload => "upload",
            Self::Echo => "echo",
            Self::Download => "download",
            Self::HalfClose => "pipeline, half-closed",
            Self::Last => "last one",
            Self::CutPipeline => "pipeline, cut",
            Self::CutUpload => "upload, cut",
            Self::CutEcho => "echo, cut",
            Self::LeaveDownload => "download, left",
            Self::HalfHead => "half a head",
            Self::Nothing => "nothing sent",
        }
    }
}

/// The results of the requests of one step.
#[derive(Clone, Copy, Default)]
pub struct Requests {
    pub times: u64,
    pub begun: u64,
    pub answered: u64,
    pub left: u64,
}

impl Requests {
    fn add(&mut self, other: Self) {
        self.times += other.times;
        self.begun += other.begun;
        self.answered += other.answered;
        self.left += other.left;
    }
}

/// The results of all requests.
#[derive(Default)]
pub struct Tally {
    pub connections: u64,
    pub failed: u64,
    pub steps: [Requests; STEPS.len()],
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.failed += other.failed;
        for (own, others) in self.steps.iter_mut().zip(&other.steps) {
            own.add(*others);
        }
    }
}

/// A client with one connection at a time.
pub struct Client {
    number: u64,
    address: SocketAddr,
    /// The number of requests that the client begins, at least.
    share: u64,
    rng: Rng,
    wire: Option<Wire>,
    connections: u64,
    now: Requests,
}

impl Client {
    pub fn new(number: u64, address: SocketAddr, share: u64, rng: Rng) -> Self {
        let (wire, now) = (None, Requests::default());
        Self { number, address, share, rng, wire, connections: 0, now }
    }

    /// Takes steps until its share is begun.
    pub async fn run(mut self) -> Tally {
        let mut tally = Tally::default();
        let (mut begun, mut taken, mut failures) = (0, 0, 0);
        while begun < self.share && failures < FAILURES {
            let step = self.choose();
            taken += 1;
            self.now = Requests { times: 1, ..Requests::default() };
            let late = async {
                Timer::after(PATIENCE).await;
                Err(wrong(format!("not done after {PATIENCE:?}")))
            };
            let done = future::or(self.take(STEPS[step].1), late).await;
            let open = self.now.begun - self.now.answered;
            if let Err(error) = done {
                let name = STEPS[step].1.name();
                eprintln!("soak: client {}, step {taken} ({name}): {error}", self.number);
                failures += 1;
                // A mistake without a request counts as a failure, too.
                tally.failed += open.max(1);
            } else {
                self.now.left = open;
            }
            begun += self.now.begun;
            tally.steps[step].add(self.now);
        }
        tally.connections = self.connections;
        tally
    }

    fn choose(&mut self) -> usize {
        let mut left = self.rng.u32(0..STEPS.iter().map(|(weight, _)| weight).sum());
        STEPS
            .iter()
            .position(|&(weight, _)| {
                let is_it = left < weight;
                left = left.saturating_sub(weight);
                is_it
            })
            .unwrap_or(0)
    }

    async fn take(&mut self, step: Step) -> io::Result<()> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => self.open().await?,
        };
        match step {
            Step::Gets => {
                for _ in 0..self.rng.u64(1..=32) {
                    self.now.begun += 1;
                    wire.send(GET).await?;
                    self.expect(&mut wire, b"okay").await?;
                }
            }
            Step::Pipeline => {
                self.send_gets(&mut wire, PIPELINE).await?;
                self.expect_okay(&mut wire, PIPELINE).await?;
            }
            Step::Mixed => self.mixed(&mut wire).await?,
            Step::Upload => self.upload(&mut wire).await?,
            Step::Echo => self.echo(&mut wire).await?,
            Step::Download => {
                self.now.begun = 1;
                wire.send(DOWNLOAD).await?;
                self.expect(&mut wire, peers::download()).await?;
            }
            Step::HalfClose => {
                let count = self.rng.u64(1..=PIPELINE);
                self.send_gets(&mut wire, count).await?;
                wire.half_close()?;
                self.expect_okay(&mut wire, count).await?;
                return wire.end().await;
            }
            Step::Last => {
                self.now.begun = 1;
                wire.send(LAST).await?;
                self.expect_okay(&mut wire, 1).await?;
                return wire.end().await;
            }
            Step::CutPipeline => return self.cut_pipeline(wire).await,
            Step::CutUpload => return self.cut_upload(wire).await,
            Step::CutEcho => return self.cut_echo(wire).await,
            Step::LeaveDownload => {
                self.now.begun = 1;
                wire.send(DOWNLOAD).await?;
                wire.skip(self.rng.usize(0..1 << 20)).await?;
                return self.leave(wire);
            }
            Step::HalfHead => {
                self.now.begun = 1;
                wire.send(&GET[..self.rng.usize(1..GET.len())]).await?;
                return self.leave(wire);
            }
            Step::Nothing => {
                self.leave(wire)?;
                let wire = self.open().await?;
                return self.leave(wire);
            }
        }
        wire.is_at_rest()?;
        self.wire = Some(wire);
        Ok(())
    }

    /// Sends `count` requests in one write.
    async fn send_gets(&mut self, wire: &mut Wire, count: u64) -> io::Result<()> {
        self.now.begun = count;
        wire.send(&GET.repeat(count as usize)).await
    }

    /// Reads the next `count` answers, which have to be `okay`.
    async fn expect_okay(&mut self, wire: &mut Wire, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.expect(wire, b"okay").await?;
        }
        Ok(())
    }

    /// Sends an upload in two writes.
    async fn upload(&mut self, wire: &mut Wire) -> io::Result<()> {
        let body = self.body(BODY_BITS);
        let message = self.post("/upload", body);
        let middle = self.rng.usize(1..message.len());
        self.now.begun = 1;
        wire.send(&message[..middle]).await?;
        future::yield_now().await;
        wire.send(&message[middle..]).await?;
        self.expect(wire, body.len().to_string().as_bytes()).await
    }

    /// Sends a body, and reads it at the same time.
    async fn echo(&mut self, wire: &mut Wire) -> io::Result<()> {
        let body = self.body(BODY_BITS);
        let message = self.post("/echo", body);
        self.now.begun = 1;
        let mut sender = wire.sender();
        future::try_zip(sender.send(&message), self.expect(wire, body)).await?;
        Ok(())
    }

    /// Sends some requests of all kinds in one write.
    async fn mixed(&mut self, wire: &mut Wire) -> io::Result<()> {
        let mut all = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..self.rng.usize(2..=8) {
            let body = self.body(12);
            match self.rng.u8(0..3) {
                0 => {
                    all.extend_from_slice(GET);
                    expected.push(b"okay".to_vec());
                }
                1 => {
                    all.extend(self.post("/upload", body));
                    expected.push(body.len().to_string().into_bytes());
                }
                _ => {
                    all.extend(self.post("/echo", body));
                    expected.push(body.to_vec());
                }
            }
        }
        self.now.begun = expected.len() as u64;
        let mut sender = wire.sender();
        let answers = async {
            for body in &expected {
                self.expect(wire, body).await?;
            }
            Ok(())
        };
        future::try_zip(sender.send(&all), answers).await?;
        Ok(())
    }

    /// Sends a pipeline that ends at a random byte, and reads some of the answers.
    async fn cut_pipeline(&mut self, mut wire: Wire) -> io::Result<()> {
        let bytes = self.rng.usize(1..GET.len() * PIPELINE as usize);
        self.now.begun = bytes.div_ceil(GET.len()) as u64;
        wire.send(&GET.repeat(PIPELINE as usize)[..bytes]).await?;
        if self.rng.bool() {
            let count = self.rng.usize(0..=bytes / GET.len());
            self.expect_okay(&mut wire, count as u64).await?;
        }
        self.leave(wire)
    }

    /// Sends an echo that ends at a random byte.
    async fn cut_echo(&mut self, wire: Wire) -> io::Result<()> {
        let body = self.body(BODY_BITS);
        let message = self.post("/echo", body);
        let bytes = self.rng.usize(1..message.len());
        self.now.begun = 1;
        // The client does not read the answer, so the send blocks when the kernels' buffers are
        // full.
        let mut sender = wire.sender();
        let given_up = async {
            Timer::after(Duration::from_millis(20)).await;
            Ok(())
        };
        future::or(sender.send(&message[..bytes]), given_up).await?;
        self.leave(wire)
    }

    /// Sends an upload that ends too early, with the whole connection, or with the client's side
    /// only, so that the server can answer with an error.
    async fn cut_upload(&mut self, mut wire: Wire) -> io::Result<()> {
        let body = self.body(BODY_BITS);
        let message = self.post("/upload", body);
        let bytes = self.rng.usize(1..message.len());
        self.now.begun = 1;
        wire.send(&message[..bytes]).await?;
        if self.rng.u8(0..4) > 0 {
            return self.leave(wire);
        }
        wire.half_close()?;
        let answer = wire.answer().await?;
        if !answer.status.starts_with("HTTP/1.1 400 ") {
            let sent = message.len();
            return Err(wrong(format!("{} to {bytes} bytes of {sent}", answer.status)));
        }
        wire.end().await
    }

    async fn open(&mut self) -> io::Result<Wire> {
        self.connections += 1;
        Wire::open(self.address).await
    }

    /// Leaves a connection without reading, in most cases with a reset, because each other close
    /// costs a port for a minute.
    fn leave(&mut self, wire: Wire) -> io::Result<()> {
        if self.rng.u8(0..4) > 0 { wire.reset() } else { Ok(()) }
    }

    /// Reads the next answer, which has to have this body.
    async fn expect(&mut self, wire: &mut Wire, expected: &[u8]) -> io::Result<()> {
        let Answer { status, body } = wire.answer().await?;
        if status != "HTTP/1.1 200 OK" {
            return Err(wrong(format!("{status:?}, {}", shown(&body))));
        }
        if body != expected {
            return Err(wrong(format!("{} instead of {}", shown(&body), shown(expected))));
        }
        self.now.answered += 1;
        Ok(())
    }

    /// Returns random bytes, in half of all cases at most a few hundred.
    fn body(&mut self, bits: u32) -> &'static [u8] {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = BYTES.get_or_init(|| {
            let mut rng = Rng::with_seed(1);
            std::iter::repeat_with(|| rng.u8(..)).take(2 << BODY_BITS).collect()
        });
        let bits = self.rng.u32(0..=bits);
        let from = self.rng.usize(0..1 << BODY_BITS);
        &bytes[from..from + self.rng.usize(0..=1 << bits)]
    }

    /// Returns a request with a body, with a length or in chunks.
    fn post(&mut self, path: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n");
        if self.rng.bool() {
            let mut message = format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
            message.extend_from_slice(body);
            return message;
        }
        let mut message = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        let mut rest = body;
        while !rest.is_empty() {
            let longest = rest.len().min(16 * 1024);
            let (chunk, behind) = rest.split_at(self.rng.usize(1..=longest));
            message.extend(format!("{:x}\r\n", chunk.len()).bytes());
            message.extend_from_slice(chunk);
            message.extend_from_slice(b"\r\n");
            rest = behind;
        }
        message.extend_from_slice(b"0\r\n\r\n");
        message
    }
}

fn shown(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) if text.len() <= 40 => format!("{text:?}"),
        _ => format!("a body of {} bytes", body.len()),
    }
}
