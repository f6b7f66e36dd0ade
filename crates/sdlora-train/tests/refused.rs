//! What cannot run is refused before a folder is taken: nothing is written, and the next start finds the
//! place free.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use sdlora_image::Channels;
use sdlora_train::{RunConfig, Start};
use toy::Bench;

/// Settings that only backbone, data set or device can refuse, and a part of what is said.
#[test]
fn settings_that_do_not_fit_backbone_or_data_leave_no_folder() {
    let bench = Bench::new();
    // The backbone has two blocks of width 16, and images of 14 pixels.
    let methods = [
        ("name = \"sdlora\"\nrank = 17", "rank 17"),
        (
            "name = \"sdlora-rr\"\nranks = [{ from_task = 0, rank = 2 }, { from_task = 1, rank = 99 }]",
            "rank 99",
        ),
        ("name = \"lora\"\nrank = 40", "rank 40"),
        ("name = \"inflora\"\nrank = 40", "rank 40"),
        ("name = \"ranpac\"\nrank = 40", "rank 40"),
        ("name = \"joint\"\nrank = 40", "rank 40"),
        ("name = \"coda-prompt\"\nblocks = [0, 2]", "from 0 to 1"),
        ("name = \"hide-prompt\"\nblocks = [7]", "from 0 to 1"),
        ("name = \"dualprompt\"\nexpert_blocks = [0]", "from 0 to 1"),
        ("name = \"dualprompt\"\ngeneral_blocks = [2]", "from 0 to 1"),
    ];
    let mut cases: Vec<(RunConfig, &str)> = methods
        .into_iter()
        .map(|(method, part)| (bench.config(method), part))
        .collect();
    let mut change = |part, change: fn(&mut RunConfig)| {
        let mut config = bench.config("name = \"sdlora\"\nrank = 4");
        change(&mut config);
        cases.push((config, part));
    };
    change("transform", |config| {
        config.transform.channels = Channels::Rgb
    });
    change("n_tasks", |config| config.stream.n_tasks = Some(1000));
    change("no-such-data", |config| {
        config.dataset = "no-such-data".into()
    });
    change("absent", |config| {
        config.backbone.weights = "absent.safetensors".into()
    });
    change("hold_out", |config| config.hold_out = 1000);
    change("calibrate_on", |config| config.calibrate_on = 1000);
    for (i, (config, part)) in cases.into_iter().enumerate() {
        let name = format!("refused-{i}");
        let method = config.method.clone();
        let plan = config.check().unwrap_or_else(|e| panic!("{method:?}: {e}"));
        let error = bench.run(&name, &plan, Start::Fresh).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(part), "{method:?}: {text}");
        assert!(!bench.path(&name).exists(), "{method:?}: {text}");
    }
}
