//! Rows of the accuracy matrix: which ones there are, and that features are reused only where they stay.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use sdlora_testkit::test_device;
use sdlora_train::{Finished, Start, TrainError};
use toy::Bench;

/// Methods whose features change in every task, in none, and in the first alone; the last reads prompts.
const METHODS: [&str; 4] = [
    "name = \"sdlora\"\nrank = 4",
    "name = \"ncm\"",
    "name = \"ranpac\"\nrank = 4",
    "name = \"l2p\"\nlength = 2\ntop = 3\nspread = 0.5",
];

fn run(bench: &Bench, name: &str, method: &str, every: usize) -> Result<Finished, TrainError> {
    let mut config = bench.config(method);
    config.stream.n_tasks = Some(3);
    config.evaluate_every = every;
    if method.contains("ranpac") {
        let head = toml::from_str::<toml::Table>("head = { name = \"ridge\", projection = 50 }");
        config.head = Some(head.unwrap()["head"].clone().try_into().unwrap());
    }
    bench.run(name, &config.check()?, Start::Fresh)
}

#[test]
fn the_last_row_is_that_of_an_evaluation_from_nothing() {
    let bench = Bench::new();
    for (i, method) in METHODS.into_iter().enumerate() {
        let finished = run(&bench, &i.to_string(), method, 1).unwrap();
        let plan = sdlora_train::read_plan(&bench.path(&i.to_string())).unwrap();
        let run = sdlora_train::analysis::TrainedRun::open(
            &bench.path(&i.to_string()),
            plan.check().unwrap(),
            &toy::data_dir(),
            &test_device(),
        )
        .unwrap();
        // Each row from the checkpoint of its task, without what the run knew of earlier rows.
        for round in 0..3 {
            let (model, _) = run.model_after(round).unwrap();
            let tests = run.test_loaders().unwrap();
            let row = sdlora_train::evaluate(&model, run.head(), &tests[..=round], &test_device());
            let found = finished.log.matrix.row(round).unwrap();
            assert_eq!(found, row.unwrap(), "{method}, row {round}");
        }
    }
}

#[test]
fn rows_between_are_left_out_where_the_plan_says_so_and_nothing_else_changes() {
    let bench = Bench::new();
    for (i, method) in METHODS.into_iter().enumerate() {
        let every = run(&bench, &format!("{i}-every"), method, 1).unwrap();
        let second = run(&bench, &format!("{i}-second"), method, 2).unwrap();
        let (all, some) = (&every.log.matrix, &second.log.matrix);
        let found: Vec<_> = (0..3).map(|row| some.row(row)).collect();
        assert_eq!(found, [None, all.row(1), all.row(2)], "{method}");
        assert_eq!(
            toy::bits(&second.model),
            toy::bits(&every.model),
            "{method}"
        );
    }
    let error = run(&bench, "none", METHODS[0], 0).unwrap_err();
    assert!(error.to_string().contains("evaluate_every"), "{error}");
}
