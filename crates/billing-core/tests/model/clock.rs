//! True time and the leaders that stamp entries with what they make of it (§4): elections, standstills, entries that come
//! late, a wall clock that jumps. A leader's elapsed time never runs ahead of true time.

use billing_core::*;

use crate::dice::Dice;

pub struct Clock {
    /// Milliseconds of true time since the run began.
    pub truth: u64,
    base: u64,
    taken_at: u64,
    wall_at_zero: u64,
    /// What it was when it was compared last.
    wall_compared: u64,
    /// The wall clock may be set back and forth by hours; else it only ever runs with true time.
    pub wild_wall: bool,
    /// Stamps may be older than the commands that they stamp. No leader does that (it reads the stamp after the batch closes),
    /// and the ledger must bear it; but a gate's window would then end after `not_after`.
    pub old_stamps: bool,
    steps: [u64; 5],
    elections: u64,
    /// The longest of the large steps.
    far: u64,
}

impl Clock {
    pub fn new(dice: &mut Dice, wild_wall: bool, old_stamps: bool, far: u64) -> Self {
        let wall_at_zero = 1_760_000_000_000 + dice.below(1_000_000);
        Self {
            truth: 0,
            base: 0,
            taken_at: 0,
            wall_at_zero,
            wall_compared: wall_at_zero,
            wild_wall,
            old_stamps,
            steps: [
                dice.between(5, 40),
                dice.between(10, 60),
                dice.between(5, 40),
                dice.between(0, 6),
                dice.between(0, 2),
            ],
            elections: dice.between(0, 3),
            far,
        }
    }

    /// Lets true time pass, mostly a little.
    pub fn step(&mut self, dice: &mut Dice) {
        let ms = match dice.weighted(&self.steps) {
            0 => 0,
            1 => dice.between(1, 100),
            2 => dice.between(100, 1_500),
            3 => dice.between(1_500, 20_000),
            _ => dice.between(20_000, self.far),
        };
        self.truth += ms;
        if self.wild_wall && dice.below(400) == 0 {
            let jump = dice.between(0, 7_200_000);
            self.wall_at_zero = if dice.percent(50) {
                self.wall_at_zero + jump
            } else {
                self.wall_at_zero - jump
            };
        }
    }

    /// A majority's clocks say the same.
    fn compare(&mut self) {
        self.wall_compared = self.wall_at_zero;
    }

    /// The stamp of an entry proposed now; `applied` is the cluster's time so far.
    pub fn stamp(&mut self, dice: &mut Dice, applied: u64) -> Stamp {
        if dice.below(100) < self.elections {
            // A new leader: it counts from what is applied when it takes over, which may be long after the last one fell.
            if dice.percent(30) {
                self.truth += dice.between(1_000, 30_000);
            }
            self.base = applied;
            self.taken_at = self.truth;
        }
        if dice.percent(5) {
            self.compare();
        }
        let mut elapsed_ms = self.truth - self.taken_at;
        if self.old_stamps && dice.percent(3) {
            elapsed_ms = elapsed_ms.saturating_sub(dice.between(0, 3_000));
        }
        Stamp {
            base: ClusterTime(self.base),
            elapsed_ms,
            wall: WallTime(self.wall_at_zero + self.truth),
            wall_jumped_ms: self.wall_at_zero as i64 - self.wall_compared as i64,
        }
    }
}
