"""The dispatcher publishes the jobs that the database says are due. One runs in every worker; one
of them leads.

    dispatcher.py             the tick: lead, rescue, publish, and when to do so next
    leader.py                 which of the workers' dispatchers acts
    rescuer.py                what died, was lost or is overdue goes back in line, or ends
    backlog.py                which jobs are published now, and in which messages
    queue_target.py           how many may be out, and how soon more are needed: arithmetic
    notification_listener.py  wakes the tick when a batch was submitted
    nightly_pass.py           once a night: what is older than its retention goes
    broker.py                 how long a queue is, and whether Redis lost its data

# What must hold, and what must not

A job that is due is published, whatever has died; a job that is published twice runs once.
The second is not the dispatcher's doing. A message carries ids, and the claim behind it is
one conditional UPDATE: of two messages for one job the first to arrive claims it, the second
finds nothing to do. So every step here errs towards publishing again, and **leadership is
thrift, not safety**: two leaders at once cost messages, and no leader for a while costs time.

# Terms

A *leadership* is a row: who leads, until when. A *term* is the time until then. Terms are
taken, kept and judged by the database's clock alone, so that workers' clocks may differ.

- A worker takes the row when there is none, or when its term is over.
- The leader keeps it by writing it again. A term is `lead_seconds` (10 s) long.
- A leader that stops, or cannot reach the broker, *resigns*: it deletes the row, and the next
  worker to tick takes over at once. A leader that dies leaves a row, and the next one waits
  for the end of its term. A leader that cannot reach the database can delete nothing, and is
  succeeded in the same way.

# The trust window

To keep a leadership is a row to write and to sync, and a tick comes up to twenty times a
second. So a leader trusts what it last wrote, for less than the term that it wrote:

    led_at     + lead_seconds / 4    until then it does not write the row again
    polled_at  + dispatch_seconds    until then it only publishes, and does not rescue

`led_at` is read on the worker's monotonic clock *before* the statement is sent, so that its
window begins before the term does. The windows add up: a tick that only publishes may be
`dispatch_seconds` after a poll that trusted a row of `lead_seconds / 4`. Settings demand
`2 * dispatch_seconds <= lead_seconds`, which leaves a quarter of a term for the tick itself.

A process that is stopped in the middle of a tick (SIGSTOP, a virtual machine that moves) may
wake after its term and finish as a second leader. That is what the guards are for.

# The guards

Each keeps one thing true when there are two leaders, or a death between two statements.

- *Published first, marked then.* Who dies between the two leaves jobs that are published
  again. The other order would leave jobs that are marked and in no queue, until they are old
  enough to be missed.
- *An expired lease is judged within the UPDATE* that puts its job back in line. A worker that
  was only slow, and renewed in time, keeps its job; one that did not is fenced off by the
  next attempt's number.
- *A deadline is judged within its UPDATE* too: of two leaders one ends the job.
- *The marker in Redis is set only if it is absent*, in one command: of two leaders one learns
  that Redis lost its data and publishes everything again.
- *A queue is called lost only when it is empty* and jobs were published to it
  `lost_seconds` ago that nobody has claimed. A message that a worker has prefetched and not
  claimed looks the same; its job is published twice.
- *A submitter has two seconds* to publish its own interactive job before the dispatcher does.
- *Targets count what is out*, published or running, in the database and not in Redis, so that
  two leaders, or one that has just taken over, do not fill the queues twice.
- *No tick follows another within 50 ms*, however many notifications come.
"""
