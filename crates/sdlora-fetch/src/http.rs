//! Requests: time limits, redirects that keep a token at home, and what is worth another attempt.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Method, Request, Response as RawResponse};
use ureq::{Agent, Body, Proxy};

use crate::error::FetchError;
use crate::names::{join, origin, shown};
use crate::progress::Progress;

/// Time to establish a connection.
const CONNECT: Duration = Duration::from_secs(20);
/// Redirects in a row, as many as browsers follow at most.
const N_REDIRECTS: usize = 20;
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often and when a request or a broken connection is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row that bring no new byte, before giving up; at least 1.
    pub n_attempts: u32,
    /// Pause after the first of them; it doubles each time, up to 30 seconds.
    pub first_pause: Duration,
    /// When a connection that still stands counts as broken.
    pub pace: Pace,
}

/// How slow a server may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Longest silence, before an answer and between two parts of it.
    pub silence: Duration,
    /// Time over which bytes are counted.
    pub window: Duration,
    /// Fewest bytes in that time.
    pub least: u64,
}

impl Default for Pace {
    /// 20 seconds of silence; 1 KiB a second over 30 seconds, below which a data set takes months.
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(20),
            window: Duration::from_secs(30),
            least: 30 << 10,
        }
    }
}

/// Counts the bytes of a [`Pace`].
#[derive(Debug)]
pub(crate) struct Watch {
    pace: Pace,
    since: Instant,
    n_bytes: u64,
}

/// What a [`Watch`] finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Speed {
    /// The time is not over.
    Unknown,
    Enough,
    /// Too few bytes, with the words for it.
    TooSlow(String),
}

impl Watch {
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            pace,
            since: Instant::now(),
            n_bytes: 0,
        }
    }

    /// Counts bytes; at the end of a window says how it was and begins the next.
    pub(crate) fn add(&mut self, n: u64) -> Speed {
        self.n_bytes += n;
        if self.since.elapsed() < self.pace.window {
            return Speed::Unknown;
        }
        let counted = std::mem::replace(self, Self::new(self.pace));
        match counted.n_bytes < counted.pace.least {
            false => Speed::Enough,
            true => Speed::TooSlow(format!(
                "only {} bytes came in {:.0?}",
                counted.n_bytes,
                counted.since.elapsed()
            )),
        }
    }
}

impl Default for Retry {
    /// Five attempts within about 8 seconds, so that a short loss of the network is survived; a server that
    /// is silent is given up after about two minutes, one that is too slow after two and a half.
    fn default() -> Self {
        Self {
            n_attempts: 5,
            first_pause: Duration::from_millis(500),
            pace: Pace::default(),
        }
    }
}

impl Retry {
    /// The words on an attempt that failed and is repeated.
    pub(crate) fn next(&self, reason: &dyn std::error::Error, n_failed: u32) -> String {
        let (next, n) = (n_failed + 1, self.n_attempts);
        format!("{reason}: attempt {next} of {n}")
    }

    /// Waits after the attempt number `n_failed`, counted from 1.
    pub(crate) fn pause(&self, n_failed: u32) {
        let factor = 1u32 << n_failed.saturating_sub(1).min(16);
        std::thread::sleep(self.first_pause.saturating_mul(factor).min(LONGEST_PAUSE));
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The network or a busy server: worth another attempt.
    Broken(Box<dyn std::error::Error + Send + Sync>),
    /// Bytes come, but too few: worth an attempt on another connection, and no progress.
    Slow(String),
    /// Another attempt would end the same way.
    Final(FetchError),
}

impl Failure {
    /// Why the attempt failed.
    pub(crate) fn reason(self) -> Box<dyn std::error::Error + Send + Sync> {
        match self {
            Self::Broken(reason) => reason,
            Self::Slow(words) => words.into(),
            Self::Final(error) => Box::new(error),
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

/// Which redirects are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    All,
    /// Only those that stay on the host; the answer that leads elsewhere is returned as it is.
    SameOrigin,
}

/// An answer.
pub(crate) struct Response {
    /// Status, a redirect only when it is not followed.
    pub(crate) status: u16,
    headers: HeaderMap,
    /// Headers of the redirects that led here, in order.
    hops: Vec<HeaderMap>,
    pub(crate) body: Body,
}

impl Response {
    /// A header of the last answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header of the first answer that has it, redirects included.
    pub(crate) fn first_header(&self, name: &str) -> Option<&str> {
        let mut all = self.hops.iter().chain([&self.headers]);
        all.find_map(|headers| headers.get(name)?.to_str().ok())
    }

    pub(crate) fn is_redirect(&self) -> bool {
        (300..400).contains(&self.status)
    }
}

/// Sends requests.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    pub(crate) retry: Retry,
}

impl Client {
    pub(crate) fn new(retry: Retry, proxy_from_env: bool) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("sdlora/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges are those of the file, not of a compressed form.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(if proxy_from_env {
                Proxy::try_from_env()
            } else {
                None
            })
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(retry.pace.silence))
            .timeout_per_read(Some(retry.pace.silence))
            .build();
        Self {
            agent: config.new_agent(),
            retry,
        }
    }

    /// Sends one request and follows redirects. The token goes to the origin of `url` alone.
    pub(crate) fn send(
        &self,
        method: &Method,
        url: &str,
        token: Option<&str>,
        headers: &[(&str, String)],
        follow: Follow,
    ) -> Result<Response, Failure> {
        let unusable = |url: &str, problem: String| {
            Failure::Final(FetchError::Answer {
                url: shown(url),
                problem,
            })
        };
        let home = origin(url).ok_or_else(|| unusable(url, "it is no http address".into()))?;
        let (mut at, mut hops) = (url.to_owned(), Vec::new());
        for _ in 0..=N_REDIRECTS {
            let is_home = origin(&at).as_ref() == Some(&home);
            let mut request = Request::builder().method(method).uri(&at);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            if let Some(token) = token.filter(|_| is_home) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|_| {
                unusable(&at, "address or token has letters it may not have".into())
            })?;
            let pace = self.retry.pace;
            let raw = self.agent.run(request).map_err(|e| sort(e, &at, pace))?;
            let location = raw
                .headers()
                .get("location")
                .and_then(|value| value.to_str().ok())
                .filter(|_| matches!(raw.status().as_u16(), 301 | 302 | 303 | 307 | 308));
            let Some(location) = location else {
                return Ok(response(raw, hops));
            };
            let next =
                join(&at, location).ok_or_else(|| unusable(&at, "it leads nowhere".into()))?;
            if follow == Follow::SameOrigin && origin(&next).as_ref() != Some(&home) {
                return Ok(response(raw, hops));
            }
            if at.starts_with("https:") && !next.starts_with("https:") {
                let problem = format!("it leads to {} without encryption", shown(&next));
                return Err(unusable(&at, problem));
            }
            hops.push(raw.headers().clone());
            at = next;
        }
        Err(unusable(url, format!("{N_REDIRECTS} redirects in a row")))
    }

    /// Sends a request until it is answered, as often as [`Retry`] says. Busy servers and internal
    /// errors count as no answer.
    pub(crate) fn send_retrying(
        &self,
        method: &Method,
        url: &str,
        token: Option<&str>,
        follow: Follow,
        progress: &mut dyn Progress,
    ) -> Result<Response, FetchError> {
        let mut n_failed = 0;
        loop {
            let sent = self.send(method, url, token, &[], follow);
            let failure = match sent {
                Ok(response) => match busy(response.status) {
                    None => return Ok(response),
                    Some(failure) => failure,
                },
                Err(failure) => failure,
            };
            match failure {
                Failure::Final(error) => return Err(error),
                failure @ (Failure::Broken(_) | Failure::Slow(_)) => {
                    let source = failure.reason();
                    n_failed += 1;
                    if n_failed >= self.retry.n_attempts {
                        return Err(FetchError::Connection {
                            url: shown(url),
                            n_attempts: n_failed,
                            source,
                        });
                    }
                    progress.trouble(&self.retry.next(source.as_ref(), n_failed));
                    self.retry.pause(n_failed);
                }
            }
        }
    }
}

/// The body of an answer that is short by nature.
///
/// # Errors
///
/// When the connection breaks, is slower than the pace allows, or brings more than `limit` bytes.
pub(crate) fn read_short(body: &mut Body, limit: u64, pace: Pace) -> Result<Vec<u8>, Failure> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 1 << 13]);
    let mut watch = Watch::new(pace);
    let mut reader = body.as_reader();
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(n) => {
                bytes.extend_from_slice(&chunk[..n]);
                if bytes.len() as u64 > limit {
                    let problem = format!("the answer is longer than {limit} bytes");
                    return Err(Failure::Broken(problem.into()));
                }
                if let Speed::TooSlow(words) = watch.add(n as u64) {
                    return Err(Failure::Slow(words));
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error, pace)),
        }
    }
}

/// A connection that broke while it was read.
pub(crate) fn broken(error: std::io::Error, pace: Pace) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let is_silence =
        error.kind() == ErrorKind::TimedOut || matches!(inner, Some(ureq::Error::Timeout(_)));
    match is_silence {
        true => Failure::Broken(silent(pace).into()),
        false => Failure::Broken(Box::new(error)),
    }
}

fn silent(pace: Pace) -> String {
    format!("nothing came for {:?}", pace.silence)
}

fn response(raw: RawResponse<Body>, hops: Vec<HeaderMap>) -> Response {
    let (parts, body) = raw.into_parts();
    Response {
        status: parts.status.as_u16(),
        headers: parts.headers,
        hops,
        body,
    }
}

/// The failure a status stands for that may be gone at the next attempt.
pub(crate) fn busy(status: u16) -> Option<Failure> {
    matches!(status, 408 | 429 | 500..=599)
        .then(|| Failure::Broken(format!("the server answers with status {status}").into()))
}

/// The error of a status that no further attempt changes.
pub(crate) fn refused(url: &str, status: u16) -> FetchError {
    let advice = match status {
        401 | 403 => "the file is not for everyone; check the token or the rights",
        404 | 410 => "the file is not there; check the address or use another mirror",
        _ => "check the address, or try again later",
    };
    FetchError::Status {
        url: shown(url),
        status,
        advice,
    }
}

fn sort(error: ureq::Error, url: &str, pace: Pace) -> Failure {
    use ureq::Error;
    match error {
        Error::BadUri(_) | Error::Http(_) | Error::InvalidProxyUrl | Error::TlsRequired => {
            Failure::Final(FetchError::Answer {
                url: shown(url),
                problem: error.to_string(),
            })
        }
        Error::Timeout(ureq::Timeout::RecvResponse | ureq::Timeout::PerRead) => {
            Failure::Broken(silent(pace).into())
        }
        other => Failure::Broken(Box::new(other)),
    }
}
