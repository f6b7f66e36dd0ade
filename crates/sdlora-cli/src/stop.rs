//! Ctrl-C and SIGTERM: the first asks the work to stop where nothing is lost, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use sdlora_train::{Event, Observer};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::output::note;

/// Exit code of a command that was asked to stop, as shells give it to Ctrl-C.
pub const EXIT_CODE: u8 = 130;
/// How soon the request is acknowledged.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The command was asked to stop, and what it says is how to go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Stopped(pub String);

/// Whether the user asked to stop.
#[derive(Debug, Clone, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// One that the signals set from now on.
    ///
    /// # Errors
    ///
    /// When the system refuses to say when a signal comes.
    pub fn on_signals() -> anyhow::Result<Self> {
        let request = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second finds what the first has set.
            flag::register_conditional_shutdown(signal, EXIT_CODE.into(), request.0.clone())
                .and_then(|_| flag::register(signal, request.0.clone()))
                .context("cannot listen to Ctrl-C")?;
        }
        let seen = request.clone();
        std::thread::spawn(move || {
            while !seen.is_made() {
                std::thread::sleep(LOOK_EVERY);
            }
            note!("stopping after this step, and saving; once more stops at once");
        });
        Ok(request)
    }

    /// Whether it was made.
    pub fn is_made(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Passes events on, and asks a run to stop when the user does.
pub struct Stoppable<'a> {
    request: StopRequest,
    next: &'a mut dyn Observer,
}

impl<'a> Stoppable<'a> {
    /// Of an observer.
    pub fn new(request: &StopRequest, next: &'a mut dyn Observer) -> Self {
        Self {
            request: request.clone(),
            next,
        }
    }
}

impl Observer for Stoppable<'_> {
    fn event(&mut self, event: &Event<'_>) {
        self.next.event(event);
    }

    fn mark(&mut self) -> Option<u64> {
        self.next.mark()
    }

    fn wants_stop(&self) -> bool {
        self.request.is_made() || self.next.wants_stop()
    }
}
