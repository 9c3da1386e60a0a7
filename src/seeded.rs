//! Random numbers for unit tests, from a seed that a failure shows.

/// Returns random numbers from a seed, which is printed. STRESS_SEED gives a seed again.
#[expect(clippy::print_stdout, reason = "the seed of a failure")]
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = given().unwrap_or_else(|| fastrand::u64(..));
    println!("STRESS_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Returns the seed that STRESS_SEED gives again.
pub(crate) fn given() -> Option<u64> {
    std::env::var("STRESS_SEED").ok()?.parse().ok()
}
