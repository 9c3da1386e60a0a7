//! Random numbers for unit tests, from a seed that a failure shows.
//!
//! Invariant: a run depends on its seed alone, and STRESS_SEED repeats it.

/// Returns random numbers from a seed, and prints the seed. With STRESS_SEED set, that is the seed.
#[expect(clippy::print_stdout, reason = "the seed of a failure")]
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = given().unwrap_or_else(|| fastrand::u64(..));
    println!("STRESS_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Returns the seed from STRESS_SEED, if the variable is set.
pub(crate) fn given() -> Option<u64> {
    std::env::var("STRESS_SEED").ok()?.parse().ok()
}
