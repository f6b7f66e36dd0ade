//! A small HTTP server on the loopback that answers as a test says and notes what it was asked.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sdlora_fetch::{Progress, Retry};

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// First byte asked for.
    pub fn range(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    cut: Option<usize>,
    chunked: bool,
    /// Waits so long before every byte of the body.
    drip: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut: None,
            chunked: false,
            drip: None,
        }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::new(200)
        }
    }

    /// The part of `body` that was asked for.
    pub fn ranged(asked: &Asked, body: &[u8]) -> Self {
        match asked.range() {
            Some(from) if from < body.len() => Self {
                body: body[from..].to_vec(),
                ..Self::new(206)
            }
            .with(
                "content-range",
                &format!("bytes {from}-{}/{}", body.len() - 1, body.len()),
            ),
            Some(_) => Self::new(416),
            None => Self::ok(body),
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn cut(mut self, n: usize) -> Self {
        self.cut = Some(n);
        self
    }

    /// Sends one byte of the body after another, each after a pause.
    pub fn drip(mut self, pause: Duration) -> Self {
        self.drip = Some(pause);
        self
    }

    /// Sends the body without saying how long it is.
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }
}

/// A running server; its thread ends with the test process.
pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answer` gets the request and its number, from 0.
    pub fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else {
                    continue;
                };
                let n = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                let _ = write(stream, &request, &answer(&request, n));
            }
        });
        Self { url, asked }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Some(Asked {
        method,
        path,
        headers,
    })
}

fn write(mut stream: TcpStream, request: &Asked, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length");
    if reply.chunked {
        head += "transfer-encoding: chunked\r\n";
    } else if !has_length {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    if let Some(pause) = reply.drip {
        for byte in body {
            thread::sleep(pause);
            stream.write_all(&[*byte])?;
        }
    } else if reply.chunked {
        for part in body.chunks(1000) {
            write!(stream, "{:x}\r\n", part.len())?;
            stream.write_all(part)?;
            stream.write_all(b"\r\n")?;
        }
        stream.write_all(b"0\r\n\r\n")?;
    } else {
        stream.write_all(body)?;
    }
    stream.flush()
}

/// Notes what it is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub started: Vec<(String, Option<u64>)>,
    pub n_bytes: u64,
    pub n_done: usize,
    pub troubles: Vec<String>,
}

impl Progress for Told {
    fn start(&mut self, file: &str, total: Option<u64>) {
        self.started.push((file.into(), total));
    }
    fn advance(&mut self, n: u64) {
        self.n_bytes += n;
    }
    fn done(&mut self) {
        self.n_done += 1;
    }
    fn trouble(&mut self, what: &str) {
        self.troubles.push(what.into());
    }
}

/// Attempts without waiting.
pub fn retry(n_attempts: u32) -> Retry {
    Retry {
        n_attempts,
        first_pause: Duration::from_millis(1),
        ..Retry::default()
    }
}

/// Bytes that differ from place to place.
pub fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * i / 7 + i) as u8).collect()
}

/// The SHA-256 of bytes.
pub fn sum(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, bytes).unwrap();
    sdlora_fetch::sha256_of(&path).unwrap()
}
