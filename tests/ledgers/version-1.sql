SELECT pg_catalog.set_config('search_path', '', false);
CREATE TABLE public.book (
    usage_topic text,
    live_topic text,
    closed_until bigint
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
    statement_id integer
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
    reasoning_tokens numeric NOT NULL
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
    reasoning_tokens numeric(20,0) NOT NULL
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
CREATE TABLE public.schema_version (
    version integer NOT NULL
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
    reasoning_tokens numeric NOT NULL
);
CREATE TABLE public.statements (
    id integer NOT NULL,
    begin_ms bigint,
    end_ms bigint NOT NULL,
    closed_at bigint NOT NULL,
    complete boolean NOT NULL,
    watermark bigint
);
CREATE VIEW public.usage AS
 SELECT open_rows.window_start,
    open_rows.user_id,
    open_rows.model_id,
    open_rows.chip_id,
    (open_rows.requests)::numeric AS requests,
    (open_rows.input_tokens)::numeric AS input_tokens,
    (open_rows.cached_input_tokens)::numeric AS cached_input_tokens,
    (open_rows.cache_write_tokens)::numeric AS cache_write_tokens,
    (open_rows.output_tokens)::numeric AS output_tokens,
    (open_rows.reasoning_tokens)::numeric AS reasoning_tokens
   FROM public.open_rows
UNION ALL
 SELECT merged_rows.window_start,
    merged_rows.user_id,
    merged_rows.model_id,
    merged_rows.chip_id,
    merged_rows.requests,
    merged_rows.input_tokens,
    merged_rows.cached_input_tokens,
    merged_rows.cache_write_tokens,
    merged_rows.output_tokens,
    merged_rows.reasoning_tokens
   FROM public.merged_rows;
CREATE TABLE public.watermarks (
    topic text NOT NULL,
    partition integer NOT NULL,
    seen bigint,
    complete bigint
);
INSERT INTO public.book VALUES
	('token-usage', 'token-live', 1795564800000);
INSERT INTO public.late VALUES
	(1795392000000, 4, 6, 2, 4, 8, 0, 0, 8, 0, 2),
	(1795392000000, 8, 7, 3, 4, 8, 0, 0, 8, 0, 2),
	(1795392000000, 8, 6, 2, 4, 8, 0, 0, 8, 0, 2),
	(1795392000000, 1, 6, 2, 4, 8, 0, 0, 8, 0, 2),
	(1795392000000, 9, 6, 2, 4, 8, 0, 0, 8, 0, 2),
	(1795392000000, 5, 6, 2, 4, 8, 0, 0, 8, 0, 2),
	(1795478400000, 8, 7, 3, 5, 16, 4, 4, 8, 8, NULL),
	(1795478400000, 8, 6, 2, 5, 16, 4, 4, 8, 8, NULL),
	(1795478400000, 1, 6, 2, 5, 16, 4, 4, 8, 8, NULL),
	(1795478400000, 9, 6, 2, 5, 16, 4, 4, 8, 8, NULL),
	(1795478400000, 5, 6, 2, 5, 16, 4, 4, 8, 8, NULL),
	(1795478400000, 4, 6, 2, 5, 16, 4, 4, 8, 8, NULL);
INSERT INTO public.merged_rows VALUES
	(1795478400000, 1, 6, 2, 2, 1152921504606846977, 0, 0, 7, 7),
	(1795478400000, 4, 6, 2, 2, 1152921504606846977, 0, 0, 7, 7),
	(1795478400000, 5, 6, 2, 2, 1152921504606846977, 0, 0, 7, 7),
	(1795478400000, 8, 6, 2, 2, 1152921504606846977, 0, 0, 7, 7),
	(1795478400000, 8, 7, 3, 2, 1152921504606846977, 0, 0, 7, 7),
	(1795478400000, 9, 6, 2, 2, 1152921504606846977, 0, 0, 7, 7),
	(1795392000000, 1, 6, 2, 5, 108, 40, 20, 38, 10),
	(1795392000000, 4, 6, 2, 5, 108, 40, 20, 38, 10),
	(1795392000000, 5, 6, 2, 5, 108, 40, 20, 38, 10),
	(1795392000000, 8, 6, 2, 5, 108, 40, 20, 38, 10),
	(1795392000000, 8, 7, 3, 5, 108, 40, 20, 38, 10),
	(1795392000000, 9, 6, 2, 5, 108, 40, 20, 38, 10);
INSERT INTO public.names VALUES
	(1, '\x626f62'),
	(2, '\x48313030'),
	(3, '\x42323030'),
	(4, '\xc3a9'),
	(5, '\x273b202d2d'),
	(6, '\x6c6c616d61'),
	(7, '\x67656d6d61'),
	(8, '\x616c696365'),
	(9, '\x00');
INSERT INTO public.open_rows VALUES
	(1795478400000, 1, 6, 2, 3, 3, 10, 0, 0, 3, 0),
	(1795478400000, 4, 6, 2, 3, 3, 10, 0, 0, 3, 0),
	(1795478400000, 5, 6, 2, 3, 3, 10, 0, 0, 3, 0),
	(1795478400000, 8, 6, 2, 3, 3, 10, 0, 0, 3, 0),
	(1795478400000, 8, 7, 3, 3, 3, 10, 0, 0, 3, 0),
	(1795478400000, 9, 6, 2, 3, 3, 10, 0, 0, 3, 0),
	(1795478400000, 1, 6, 2, 5, 5, 16, 4, 4, 8, 8),
	(1795478400000, 4, 6, 2, 5, 5, 16, 4, 4, 8, 8),
	(1795478400000, 5, 6, 2, 5, 5, 16, 4, 4, 8, 8),
	(1795478400000, 8, 6, 2, 5, 5, 16, 4, 4, 8, 8),
	(1795478400000, 8, 7, 3, 5, 5, 16, 4, 4, 8, 8),
	(1795478400000, 9, 6, 2, 5, 5, 16, 4, 4, 8, 8);
INSERT INTO public.parts VALUES
	(1, 'meter.1', 60000, 'merged', 'meter', 0, 0, 6, 600, 240, 120, 180, 60),
	(2, 'meter.2', 60000, 'merged', 'meter', 0, 0, 12, 6917529027641081862, 0, 0, 42, 42),
	(3, 'meter.3', 60000, 'disputed', 'meter', 0, 0, 0, 0, 0, 0, 0, 0),
	(5, 'meter.5', 60000, 'open', 'meter', 0, 0, 30, 96, 24, 24, 48, 48),
	(4, 'meter.4', 60000, 'merged', 'meter', 0, 0, 24, 48, 0, 0, 48, 0);
INSERT INTO public.positions VALUES
	('token-live', 0, '00000000-0000-0000-0000-000000000003', 9),
	('token-usage', 0, '00000000-0000-0000-0000-000000000002', 17),
	('token-usage', 1, '00000000-0000-0000-0000-000000000002', 21);
INSERT INTO public.schema_version VALUES
	(1);
INSERT INTO public.statement_lines VALUES
	(1, 8, 7, 3, 1, 100, 40, 20, 30, 10),
	(1, 8, 6, 2, 1, 100, 40, 20, 30, 10),
	(1, 9, 6, 2, 1, 100, 40, 20, 30, 10),
	(1, 5, 6, 2, 1, 100, 40, 20, 30, 10),
	(1, 1, 6, 2, 1, 100, 40, 20, 30, 10),
	(1, 4, 6, 2, 1, 100, 40, 20, 30, 10),
	(2, 1, 6, 2, 5, 1152921504606846987, 0, 0, 10, 7),
	(2, 4, 6, 2, 5, 1152921504606846987, 0, 0, 10, 7),
	(2, 5, 6, 2, 5, 1152921504606846987, 0, 0, 10, 7),
	(2, 8, 6, 2, 5, 1152921504606846987, 0, 0, 10, 7),
	(2, 8, 7, 3, 5, 1152921504606846987, 0, 0, 10, 7),
	(2, 9, 6, 2, 5, 1152921504606846987, 0, 0, 10, 7);
INSERT INTO public.statements VALUES
	(1, NULL, 1795478400000, 1795392000000, true, 1795651200000),
	(2, 1795478400000, 1795564800000, 1795392000000, true, 1795737600000);
INSERT INTO public.watermarks VALUES
	('inference-logs', 0, 1795824000000, 1795824000000);
ALTER TABLE ONLY public.merged_rows
    ADD CONSTRAINT merged_rows_pkey PRIMARY KEY (user_id, window_start, model_id, chip_id);
ALTER TABLE ONLY public.names
    ADD CONSTRAINT names_name_key UNIQUE (name);
ALTER TABLE ONLY public.names
    ADD CONSTRAINT names_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.open_rows
    ADD CONSTRAINT open_rows_pkey PRIMARY KEY (user_id, window_start, model_id, chip_id, part_id);
CREATE INDEX late_statement ON public.late USING btree (statement_id);
CREATE INDEX merged_rows_time ON public.merged_rows USING brin (window_start);
CREATE INDEX open_rows_time ON public.open_rows USING brin (window_start, part_id);
CREATE UNIQUE INDEX parts_name ON public.parts USING btree (name);
CREATE INDEX statement_lines_statement ON public.statement_lines USING btree (statement_id);
