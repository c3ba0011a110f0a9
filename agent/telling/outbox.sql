-- What the device has to say and has not yet been heard, and the open windows that will become part of it.

create table if not exists meta (
    key text primary key,
    value text not null
) without rowid;

create table if not exists outbox (
    sequence integer primary key,
    kind text not null,
    priority integer not null,  -- the lowest goes first when there is no room
    event_time real not null,
    crc integer not null,  -- of the body: SQLite's own integrity_check misses most bit rot
    body blob not null,
    said integer not null default 0,  -- 1: it was handed to the network, and may be known by its number
    seal integer  -- a CRC over epoch, number, kind, time and body: what of a damaged file is believed
);

-- One open window per manifest: a roll-back continues the window, and the numbering, of the artifact it returns to.
create table if not exists accumulator (
    manifest text primary key,
    window_number integer not null,
    event_clock real not null,
    body blob not null  -- empty between two windows
) without rowid;

-- What was damaged, as it was found, for whoever wants to know why: the newest few, cut short.
create table if not exists quarantine (
    number integer primary key autoincrement,
    epoch text not null,
    sequence integer not null,
    kind text not null,
    body blob not null
);
