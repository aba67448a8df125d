SELECT pg_catalog.set_config('search_path', '', false);
CREATE TABLE public.adjustments (
    id integer NOT NULL,
    key text NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    given text NOT NULL,
    made_at bigint NOT NULL,
    window_start bigint,
    user_id integer,
    model_id integer,
    chip_id integer,
    labels_id integer NOT NULL,
    label_id integer,
    value_id integer,
    voids integer,
    requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    cache_write_1h_tokens numeric NOT NULL,
    audio_input_tokens numeric NOT NULL,
    image_input_tokens numeric NOT NULL,
    audio_cached_input_tokens numeric NOT NULL,
    audio_output_tokens numeric NOT NULL,
    currency text,
    statement_id integer,
    list_id integer,
    price_line integer,
    amount text
);
CREATE TABLE public.book (
    usage_topic text,
    live_topic text,
    closed_until bigint,
    further boolean DEFAULT false
);
CREATE TABLE public.label_sets (
    id integer NOT NULL,
    name bytea NOT NULL
);
CREATE TABLE public.late (
    window_start bigint NOT NULL,
    user_id integer NOT NULL,
    model_id integer NOT NULL,
    chip_id integer NOT NULL,
    requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    statement_id integer,
    labels_id integer DEFAULT 0,
    cache_write_1h_tokens numeric DEFAULT 0,
    audio_input_tokens numeric DEFAULT 0,
    image_input_tokens numeric DEFAULT 0,
    audio_cached_input_tokens numeric DEFAULT 0,
    audio_output_tokens numeric DEFAULT 0,
    closed_by integer,
    list_id integer,
    price_line integer,
    amount text
);
CREATE TABLE public.merged_rows (
    window_start bigint NOT NULL,
    user_id integer NOT NULL,
    model_id integer NOT NULL,
    chip_id integer NOT NULL,
    requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    labels_id integer DEFAULT 0 NOT NULL,
    cache_write_1h_tokens numeric DEFAULT 0,
    audio_input_tokens numeric DEFAULT 0,
    image_input_tokens numeric DEFAULT 0,
    audio_cached_input_tokens numeric DEFAULT 0,
    audio_output_tokens numeric DEFAULT 0
);
CREATE TABLE public.names (
    id integer NOT NULL,
    name bytea NOT NULL
);
CREATE TABLE public.open_rows (
    window_start bigint NOT NULL,
    user_id integer NOT NULL,
    model_id integer NOT NULL,
    chip_id integer NOT NULL,
    part_id integer NOT NULL,
    requests numeric(20,0) NOT NULL,
    input_tokens numeric(20,0) NOT NULL,
    cached_input_tokens numeric(20,0) NOT NULL,
    cache_write_tokens numeric(20,0) NOT NULL,
    output_tokens numeric(20,0) NOT NULL,
    reasoning_tokens numeric(20,0) NOT NULL,
    labels_id integer DEFAULT 0 NOT NULL,
    cache_write_1h_tokens numeric(20,0) DEFAULT 0,
    audio_input_tokens numeric(20,0) DEFAULT 0,
    image_input_tokens numeric(20,0) DEFAULT 0,
    audio_cached_input_tokens numeric(20,0) DEFAULT 0,
    audio_output_tokens numeric(20,0) DEFAULT 0
)
WITH (fillfactor='70');
CREATE TABLE public.parts (
    id integer NOT NULL,
    name text NOT NULL,
    window_ms bigint NOT NULL,
    state text NOT NULL,
    meter text,
    sequence bigint,
    live_partition integer,
    requests numeric(20,0),
    input_tokens numeric(20,0),
    cached_input_tokens numeric(20,0),
    cache_write_tokens numeric(20,0),
    output_tokens numeric(20,0),
    reasoning_tokens numeric(20,0)
);
CREATE TABLE public.positions (
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next bigint NOT NULL
);
CREATE TABLE public.price_lists (
    id integer NOT NULL,
    digest text NOT NULL,
    currency text NOT NULL,
    content bytea NOT NULL
);
CREATE TABLE public.schema_version (
    version integer NOT NULL
);
CREATE TABLE public.set_labels (
    set_id integer NOT NULL,
    name_id integer NOT NULL,
    value_id integer NOT NULL
);
CREATE TABLE public.statement_lines (
    statement_id integer NOT NULL,
    user_id integer NOT NULL,
    model_id integer NOT NULL,
    chip_id integer NOT NULL,
    requests numeric NOT NULL,
    input_tokens numeric NOT NULL,
    cached_input_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    reasoning_tokens numeric NOT NULL,
    labels_id integer DEFAULT 0,
    cache_write_1h_tokens numeric DEFAULT 0,
    audio_input_tokens numeric DEFAULT 0,
    image_input_tokens numeric DEFAULT 0,
    audio_cached_input_tokens numeric DEFAULT 0,
    audio_output_tokens numeric DEFAULT 0,
    price_line integer,
    span_begin bigint,
    span_end bigint,
    amount text
);
CREATE TABLE public.statements (
    id integer NOT NULL,
    begin_ms bigint,
    end_ms bigint NOT NULL,
    closed_at bigint NOT NULL,
    complete boolean NOT NULL,
    watermark bigint,
    user_id integer,
    label_id integer,
    value_id integer,
    time_zone text,
    list_id integer,
    amount text
);
CREATE VIEW public.usage AS
 SELECT open_rows.window_start,
    open_rows.user_id,
    open_rows.model_id,
    open_rows.chip_id,
    open_rows.labels_id,
    (open_rows.requests)::numeric AS requests,
    (open_rows.input_tokens)::numeric AS input_tokens,
    (open_rows.cached_input_tokens)::numeric AS cached_input_tokens,
    (open_rows.cache_write_tokens)::numeric AS cache_write_tokens,
    (open_rows.output_tokens)::numeric AS output_tokens,
    (open_rows.reasoning_tokens)::numeric AS reasoning_tokens,
    (open_rows.cache_write_1h_tokens)::numeric AS cache_write_1h_tokens,
    (open_rows.audio_input_tokens)::numeric AS audio_input_tokens,
    (open_rows.image_input_tokens)::numeric AS image_input_tokens,
    (open_rows.audio_cached_input_tokens)::numeric AS audio_cached_input_tokens,
    (open_rows.audio_output_tokens)::numeric AS audio_output_tokens
   FROM public.open_rows
UNION ALL
 SELECT merged_rows.window_start,
    merged_rows.user_id,
    merged_rows.model_id,
    merged_rows.chip_id,
    merged_rows.labels_id,
    merged_rows.requests,
    merged_rows.input_tokens,
    merged_rows.cached_input_tokens,
    merged_rows.cache_write_tokens,
    merged_rows.output_tokens,
    merged_rows.reasoning_tokens,
    merged_rows.cache_write_1h_tokens,
    merged_rows.audio_input_tokens,
    merged_rows.image_input_tokens,
    merged_rows.audio_cached_input_tokens,
    merged_rows.audio_output_tokens
   FROM public.merged_rows;
CREATE TABLE public.watermarks (
    topic text NOT NULL,
    partition integer NOT NULL,
    seen bigint,
    complete bigint
);
INSERT INTO public.adjustments VALUES
	(1, 'c1', 'credit', 'r', '{"amount": "-0.5", "key": "c1", "reason": "r", "user": "bob"}', 8, NULL, 2, NULL, NULL, 0, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 6, NULL, NULL, '-0.5'),
	(2, 'c2', 'credit', 'r', '{"amount": "-0.5", "key": "c2", "reason": "r", "user": "bob"}', 8, NULL, 2, NULL, NULL, 0, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, '-0.5'),
	(3, 'v', 'void', 'r', '{"key": "v", "reason": "r", "void": "c1"}', 8, NULL, 2, NULL, NULL, 0, NULL, NULL, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, '0.5');
INSERT INTO public.book VALUES
	('token-usage', 'token-live', 1795737600000, true);
INSERT INTO public.label_sets VALUES
	(0, '\x'),
	(1, '\x0000000a0000000b0000000c0000000d'),
	(2, '\x0000000a0000000e');
INSERT INTO public.late VALUES
	(1795392000000, 1, 6, 8, 4, 8, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL),
	(1795392000000, 1, 7, 9, 4, 8, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL),
	(1795392000000, 2, 6, 8, 4, 8, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL),
	(1795392000000, 3, 6, 8, 4, 8, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL),
	(1795392000000, 4, 6, 8, 4, 8, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL),
	(1795392000000, 5, 6, 8, 4, 8, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 1, NULL, NULL, NULL),
	(1795478400000, 1, 6, 8, 5, 16, 4, 4, 8, 8, 4, 0, 0, 0, 0, 0, 0, 2, 1, 3, '0.0000069'),
	(1795478400000, 1, 7, 9, 5, 16, 4, 4, 8, 8, 4, 0, 0, 0, 0, 0, 0, 2, 1, NULL, NULL),
	(1795478400000, 2, 6, 8, 5, 16, 4, 4, 8, 8, 4, 0, 0, 0, 0, 0, 0, 2, 1, 3, '0.0000069'),
	(1795478400000, 3, 6, 8, 5, 16, 4, 4, 8, 8, 4, 0, 0, 0, 0, 0, 0, 2, 1, 3, '0.0000069'),
	(1795478400000, 4, 6, 8, 5, 16, 4, 4, 8, 8, 4, 0, 0, 0, 0, 0, 0, 2, 1, 3, '0.0000069'),
	(1795478400000, 5, 6, 8, 5, 16, 4, 4, 8, 8, 4, 0, 0, 0, 0, 0, 0, 2, 1, 3, '0.0000069'),
	(1795564800000, 1, 6, 8, 1, 50, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0, 3, 1, 12, '0.000005'),
	(1795564800000, 2, 6, 8, 1, 50, 0, 0, 0, 0, 6, 2, 0, 0, 0, 0, 0, 4, 1, 3, '0.0000075'),
	(1795564800000, 2, 7, 8, 1, 50, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 4, 1, NULL, NULL);
INSERT INTO public.merged_rows VALUES
	(1795478400000, 1, 6, 8, 2, 1152921504606846977, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0),
	(1795478400000, 1, 7, 9, 2, 1152921504606846977, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0),
	(1795478400000, 2, 6, 8, 2, 1152921504606846977, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0),
	(1795478400000, 3, 6, 8, 2, 1152921504606846977, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0),
	(1795478400000, 4, 6, 8, 2, 1152921504606846977, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0),
	(1795478400000, 5, 6, 8, 2, 1152921504606846977, 0, 0, 7, 7, 0, 0, 0, 0, 0, 0),
	(1795392000000, 1, 6, 8, 5, 108, 40, 20, 38, 10, 0, 0, 0, 0, 0, 0),
	(1795392000000, 1, 7, 9, 5, 108, 40, 20, 38, 10, 0, 0, 0, 0, 0, 0),
	(1795392000000, 2, 6, 8, 5, 108, 40, 20, 38, 10, 0, 0, 0, 0, 0, 0),
	(1795392000000, 3, 6, 8, 5, 108, 40, 20, 38, 10, 0, 0, 0, 0, 0, 0),
	(1795392000000, 4, 6, 8, 5, 108, 40, 20, 38, 10, 0, 0, 0, 0, 0, 0),
	(1795392000000, 5, 6, 8, 5, 108, 40, 20, 38, 10, 0, 0, 0, 0, 0, 0);
INSERT INTO public.names VALUES
	(1, '\x616c696365'),
	(2, '\x626f62'),
	(3, '\x00'),
	(4, '\x273b202d2d'),
	(5, '\xc3a9'),
	(6, '\x6c6c616d61'),
	(7, '\x67656d6d61'),
	(8, '\x48313030'),
	(9, '\x42323030'),
	(10, '\x7465616d'),
	(11, '\x626c7565'),
	(12, '\x74696572'),
	(13, '\x6261746368'),
	(14, '\x7b7d');
INSERT INTO public.open_rows VALUES
	(1795478400000, 1, 6, 8, 3, 3, 10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0),
	(1795478400000, 1, 7, 9, 3, 3, 10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0),
	(1795478400000, 2, 6, 8, 3, 3, 10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0),
	(1795478400000, 3, 6, 8, 3, 3, 10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0),
	(1795478400000, 4, 6, 8, 3, 3, 10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0),
	(1795478400000, 5, 6, 8, 3, 3, 10, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0),
	(1795478400000, 1, 6, 8, 5, 5, 16, 4, 4, 8, 8, 0, 0, 0, 0, 0, 0),
	(1795478400000, 1, 7, 9, 5, 5, 16, 4, 4, 8, 8, 0, 0, 0, 0, 0, 0),
	(1795478400000, 2, 6, 8, 5, 5, 16, 4, 4, 8, 8, 0, 0, 0, 0, 0, 0),
	(1795478400000, 3, 6, 8, 5, 5, 16, 4, 4, 8, 8, 0, 0, 0, 0, 0, 0),
	(1795478400000, 4, 6, 8, 5, 5, 16, 4, 4, 8, 8, 0, 0, 0, 0, 0, 0),
	(1795478400000, 5, 6, 8, 5, 5, 16, 4, 4, 8, 8, 0, 0, 0, 0, 0, 0),
	(1795564800000, 1, 6, 8, 6, 2, 150, 40, 20, 30, 10, 1, 0, 0, 0, 0, 0),
	(1795564800000, 2, 6, 8, 6, 2, 150, 40, 20, 30, 10, 2, 0, 3, 0, 0, 0),
	(1795564800000, 2, 7, 8, 6, 2, 150, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0);
INSERT INTO public.parts VALUES
	(1, 'meter.1', 60000, 'merged', 'meter', 0, 0, 6, 600, 240, 120, 180, 60),
	(2, 'meter.2', 60000, 'merged', 'meter', 0, 0, 12, 6917529027641081862, 0, 0, 42, 42),
	(3, 'meter.3', 60000, 'disputed', 'meter', 0, 0, 0, 0, 0, 0, 0, 0),
	(5, 'meter.5', 60000, 'open', 'meter', 0, 0, 30, 96, 24, 24, 48, 48),
	(4, 'meter.4', 60000, 'merged', 'meter', 0, 0, 24, 48, 0, 0, 48, 0),
	(6, 'l.1', 60000, 'open', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.positions VALUES
	('token-live', 0, '00000000-0000-0000-0000-000000000003', 9),
	('token-usage', 1, '00000000-0000-0000-0000-000000000002', 21),
	('token-usage', 0, '00000000-0000-0000-0000-000000000002', 23);
INSERT INTO public.price_lists VALUES
	(1, 'aeff27124dfd8a9c75f007dcaffd7ec5403c892fff2a6cab04b1eeff870b160d', 'USD', '\x0a63757272656e6379203d2022555344220a5b5b70726963655d5d0a6d6f64656c203d20226c6c616d61220a696e707574203d2022302e3135220a6361636865645f696e707574203d2022302e303735220a6f7574707574203d2022302e36220a5b5b636869705f636f73745d5d0a63686970203d202248313030220a7065725f6d696c6c696f6e5f746f6b656e73203d2022302e3032220a0a5b5b70726963655d5d0a6d6f64656c203d20226c6c616d61220a6c6162656c73203d207b2074696572203d2022626174636822207d0a696e707574203d2022302e31220a6f7574707574203d2022302e33220a617564696f5f696e707574203d202239220a');
INSERT INTO public.schema_version VALUES
	(1),
	(2);
INSERT INTO public.set_labels VALUES
	(1, 10, 11),
	(1, 12, 13),
	(2, 10, 14);
INSERT INTO public.statement_lines VALUES
	(1, 3, 6, 8, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(1, 2, 6, 8, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(1, 4, 6, 8, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(1, 1, 7, 9, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(1, 5, 6, 8, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(1, 1, 6, 8, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(2, 1, 6, 8, 5, 1152921504606846987, 0, 0, 10, 7, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(2, 1, 7, 9, 5, 1152921504606846987, 0, 0, 10, 7, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(2, 2, 6, 8, 5, 1152921504606846987, 0, 0, 10, 7, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(2, 3, 6, 8, 5, 1152921504606846987, 0, 0, 10, 7, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(2, 4, 6, 8, 5, 1152921504606846987, 0, 0, 10, 7, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(2, 5, 6, 8, 5, 1152921504606846987, 0, 0, 10, 7, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL),
	(3, 1, 6, 8, 1, 100, 40, 20, 30, 10, 1, 0, 0, 0, 0, 0, 12, 1795564800000, 1795651200000, '0.000019'),
	(4, 2, 6, 8, 1, 100, 40, 20, 30, 10, 2, 0, 3, 0, 0, 0, 3, 1795564800000, 1795651200000, '0.00003'),
	(4, 2, 7, 8, 1, 100, 40, 20, 30, 10, 0, 0, 0, 0, 0, 0, NULL, 1795564800000, 1795651200000, NULL);
INSERT INTO public.statements VALUES
	(1, NULL, 1795478400000, 1795392000000, true, 1795651200000, NULL, NULL, NULL, NULL, NULL, NULL),
	(2, 1795478400000, 1795564800000, 1795392000000, true, 1795737600000, NULL, NULL, NULL, NULL, NULL, NULL),
	(3, 1795564800000, 1795651200000, 7, true, 1795824000000, NULL, 10, 11, 'Europe/Berlin', 1, '0.000019'),
	(4, 1795564800000, 1795651200000, 7, true, 1795824000000, NULL, NULL, NULL, NULL, 1, '0.0000645'),
	(5, 1795651200000, 1795737600000, 7, true, 1795824000000, NULL, 10, 11, 'Europe/Berlin', 1, '0.000005'),
	(6, 1795651200000, 1795737600000, 7, true, 1795824000000, NULL, NULL, NULL, NULL, 1, '-0.4999925');
INSERT INTO public.watermarks VALUES
	('inference-logs', 0, 1795824000000, 1795824000000);
ALTER TABLE ONLY public.label_sets
    ADD CONSTRAINT label_sets_name_key UNIQUE (name);
ALTER TABLE ONLY public.label_sets
    ADD CONSTRAINT label_sets_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.merged_rows
    ADD CONSTRAINT merged_rows_pkey PRIMARY KEY (user_id, window_start, model_id, chip_id, labels_id);
ALTER TABLE ONLY public.names
    ADD CONSTRAINT names_name_key UNIQUE (name);
ALTER TABLE ONLY public.names
    ADD CONSTRAINT names_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.open_rows
    ADD CONSTRAINT open_rows_pkey PRIMARY KEY (user_id, window_start, model_id, chip_id, labels_id, part_id);
ALTER TABLE ONLY public.set_labels
    ADD CONSTRAINT set_labels_pkey PRIMARY KEY (set_id, name_id);
CREATE INDEX late_statement ON public.late USING btree (statement_id);
CREATE INDEX merged_rows_time ON public.merged_rows USING brin (window_start);
CREATE INDEX open_rows_time ON public.open_rows USING brin (window_start, part_id);
CREATE UNIQUE INDEX parts_name ON public.parts USING btree (name);
CREATE INDEX statement_lines_statement ON public.statement_lines USING btree (statement_id);
