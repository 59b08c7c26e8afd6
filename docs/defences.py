"""The defences of docs/security.md, each with a mutation that removes it and the test that notices.

`make mutants` (tests/project/test_mutants.py) applies each mutation to a copy of the project and
expects that the test fails.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defence:
    """One defence.

    Attributes:
        text: what it does, for readers of docs/security.md.
        test: file and name of the test that fails without it.
        module: the file that has it.
        old: text that occurs once in the module.
        new: what replaces it, so that the defence is gone.
    """

    text: str
    test: str
    module: str
    old: str
    new: str


JOB = [
    Defence(
        "An input has at most 2,000 keys and 100,000 values",
        "tests/job/test_request.py::test_bad_input_is_refused_with_field_value_and_remedy",
        "worker/job/problems.py",
        "if keys > max_keys or values > MAX_VALUES:",
        "if False:",
    ),
    Defence(
        "It is nested at most 60 levels deep",
        "tests/job/test_request.py"
        "::test_an_input_that_is_nested_deeply_is_refused_and_shown_shortly",
        "worker/job/problems.py",
        "for _ in range(MAX_DEPTH):",
        "while True:",
    ),
    Defence(
        "Regular expressions that meet a prompt take time in proportion to its length",
        "tests/job/test_patterns.py::test_a_pattern_is_linear",
        "worker/job/prompt.py",
        r'r"<(\w+):([^>]+)(>|\Z)"',
        r'r"<(\w+):([^>]+)>"',
    ),
    Defence(
        "A value is cut before a message about it is made",
        "tests/job/test_request.py::test_a_value_of_any_length_is_cut_before_it_is_searched",
        "worker/shown.py",
        "repr(_redacted(value[:_CUT], is_cut=len(value) > _CUT))",
        "repr(_redacted(value, is_cut=False))",
    ),
    Defence(
        "A prompt has at most 400 brackets and colons, which would keep A1111 for minutes",
        "tests/job/test_prompt_checks.py"
        "::test_brackets_that_keep_a1111_for_minutes_or_make_it_fail_are_refused",
        "worker/job/prompt_checks.py",
        "if parts > MOST_PARTS:",
        "if False:",
    ),
    Defence(
        "The choices and characters of wildcards are limited",
        "tests/job/test_wildcards.py"
        "::test_what_one_job_reads_and_chooses_is_counted_over_all_of_its_prompts",
        "worker/job/wildcards.py",
        "if self.read > MOST_READ or self.choices > MOST_CHOICES:",
        "if False:",
    ),
    Defence(
        "A picture's size is checked before its pixels are decoded",
        "tests/images/test_decoder.py::test_nothing_is_decoded_of_a_picture_that_is_too_large",
        "worker/images/decoder.py",
        "            check_size(image.width, image.height, limits)\n",
        "",
    ),
    Defence(
        "Pictures are decoded in a process with a limit of memory",
        "tests/images/test_reader.py::test_a_bomb_costs_the_process_that_decodes_and_not_this_one",
        "worker/images/decoder.py",
        "(limits.decode_memory, limits.decode_memory)",
        "(-1, -1)",
    ),
    Defence(
        "The process that decodes pictures has a limit of time",
        "tests/images/test_reader.py::test_a_process_that_hangs_is_killed",
        "worker/images/sandbox.py",
        "if stop.is_set() or time.monotonic() > deadline:",
        "if False:",
    ),
    Defence(
        "and none of the secrets",
        "tests/images/test_reader.py::test_the_process_gets_no_secret",
        "worker/images/sandbox.py",
        "env=environ,",
        "env=dict(os.environ),",
    ),
    Defence(
        "Only seven formats are decoded; Pillow knows some that start other programs",
        "tests/images/test_decoder.py::test_a_file_that_cannot_be_used_is_named",
        "worker/images/decoder.py",
        "formats=FORMATS)",
        "formats=None)",
    ),
    Defence(
        "A1111's old library for WebP gets no file of a job",
        "tests/images/test_decoder.py::test_every_other_form_becomes_a_plain_png",
        "worker/images/decoder.py",
        '_AS_SENT = {"PNG", "JPEG"}',
        '_AS_SENT = {"PNG", "JPEG", "WEBP"}',
    ),
    Defence(
        "The files of a job's pictures have a limit in bytes",
        "tests/images/test_reader.py::test_each_bound_holds_to_the_byte",
        "worker/images/limits.py",
        "if size > limits.file_bytes:",
        "if False:",
    ),
    Defence(
        "A job's id becomes part of a file's name or of a key only when it is cleaned",
        "tests/delivery/test_delivery.py::test_a_jobs_id_is_not_a_path",
        "worker/delivery/output_dir.py",
        're.sub(r"[^A-Za-z0-9_-]+", "_", job_id)',
        "job_id",
    ),
    Defence(
        "The model store has no names that lead out of its folders",
        "tests/job/test_reference.py::test_no_invalid_reference_can_be_built",
        "worker/hosts/ref.py",
        'return is_plain and not {"", ".", ".."} & set(text.split("/"))',
        "return is_plain",
    ),
    Defence(
        "The bridge sends RunPod only ids that cannot lead to another address",
        "tests/gateway/test_endpoint.py::test_an_id_that_would_lead_to_another_address_is_not_sent",
        "gateway/endpoint/jobs.py",
        "if not _JOB_ID.fullmatch(job_id):",
        "if False:",
    ),
    Defence(
        "The local queue is limited",
        "tests/gateway/test_local_jobs.py::test_a_full_queue_refuses_jobs",
        "gateway/local/jobs.py",
        "            raise TooManyJobs(",
        "            TooManyJobs(",
    ),
    Defence(
        "JSON over HTTP has at most 400,000 commas and brackets, counted before it is parsed",
        "tests/gateway/test_odd_values.py"
        "::test_json_of_very_many_values_is_refused_before_it_is_parsed",
        "gateway/http/body.py",
        "if marks > MOST_MARKS:",
        "if False:",
    ),
    Defence(
        "The fields of a form are counted together",
        "tests/gateway/test_openai.py::test_a_body_that_cannot_be_read_is_refused_without_a_job",
        "gateway/openai/form.py",
        "        refuse_many_values(",
        "        print(",
    ),
    Defence(
        "The memory of jobs that the server keeps is limited, whatever they are made of",
        "tests/gateway/test_local_jobs.py"
        "::test_what_a_failed_job_keeps_for_a_retry_counts_whatever_it_is_made_of",
        "gateway/local/stream.py",
        "            rest.extend(one)  # its keys\n",
        "",
    ),
    Defence(
        "A job that has ended leaves nothing else in memory",
        "tests/gateway/test_local_jobs.py"
        "::test_a_job_that_has_ended_keeps_nothing_that_its_handler_has_set",
        "gateway/local/job.py",
        "            self.work = None\n",
        "            pass\n",
    ),
    Defence(
        "Webhooks that wait for their host keep a limited memory",
        "tests/gateway/test_webhooks.py::test_webhooks_that_wait_keep_a_bounded_memory",
        "gateway/local/webhooks.py",
        "if is_much or len(self._sending)",
        "if len(self._sending)",
    ),
]

MODEL = [
    Defence(
        "Pickles are refused by their name, before a byte is fetched",
        "tests/models/store/test_fetcher.py::test_the_suffix_is_enough_to_reject",
        "worker/models/store/fetcher.py",
        "if suffix in PICKLES and not self._pickles:",
        "if False:",
    ),
    Defence(
        "Pickles are also recognized by their first bytes",
        "tests/formats/test_safetensors_header.py"
        "::test_another_format_is_rejected_by_name_before_the_header_is_complete",
        "worker/formats/safetensors_header.py",
        "    if _is_pickle(start):\n        raise ModelUnsafe",
        "    if False:\n        raise ModelUnsafe",
    ),
    Defence(
        "A header of safetensors has at most 16 MB",
        "tests/formats/test_safetensors_header.py"
        "::test_a_damaged_header_is_rejected_with_the_position",
        "worker/formats/safetensors_header.py",
        "if length > _MAX_HEADER:",
        "if False:",
    ),
    Defence(
        "and at most 1,000,000 values, counted before it is parsed",
        "tests/formats/test_safetensors_header.py"
        "::test_a_damaged_header_is_rejected_with_the_position",
        "worker/formats/safetensors_header.py",
        '    _require(values <= _MAX_VALUES, f"it has {values} values")\n',
        "",
    ),
    Defence(
        "and at most 30,000 tensors",
        "tests/formats/test_safetensors_header.py"
        "::test_a_damaged_header_is_rejected_with_the_position",
        "worker/formats/safetensors_header.py",
        '    _require(len(entries) <= _MAX_TENSORS, f"it has {len(entries)} tensors")\n',
        "",
    ),
    Defence(
        "The limits of a header come before the library that parses the file",
        "tests/formats/test_model_file.py::test_our_checks_keep_hostile_headers_from_the_library",
        "worker/formats/model_file.py",
        "        needed = safetensors_header.header_length(start) or 0\n",
        "        check_with_safetensors(path)\n        needed = 0\n",
    ),
    Defence(
        "Of a web page in place of a model, only 4 KiB are searched for its title",
        "tests/formats/test_safetensors_header.py"
        "::test_only_the_beginning_of_a_web_page_is_searched_for_its_title",
        "worker/formats/safetensors_header.py",
        "body = start[:_LOOKED_AT].removeprefix",
        "body = start.removeprefix",
    ),
    Defence(
        "A `.yaml` of a repository, which can name any code, does not reach A1111",
        "tests/models/store/test_hub_cache.py"
        "::test_a_yaml_of_the_repository_is_not_given_to_the_engine",
        "worker/formats/model_file.py",
        'is_own = self.kind == "checkpoint" and self.source is None',
        'is_own = self.kind == "checkpoint"',
    ),
    Defence(
        "The worker's extension lets into A1111's pickles only the members that torch adds",
        "tests/extension/test_pickles.py::test_other_members_are_refused",
        "image/a1111_extension/a1111_worker/pickles.py",
        r'|^[^/]+/(?:{_MEMBERS})\Z"',
        r'|^[^/]+/.*\Z"',
    ),
    Defence(
        "and the functions that A1111 allows",
        "tests/extension/test_pickles.py::test_other_functions_are_refused",
        "image/a1111_extension/a1111_worker/pickles.py",
        "return find_class(self, _RENAMED.get(module, module), name)",
        "return getattr(__import__(module), name)",
    ),
    Defence(
        "The embedded engine runs no code of an embedding",
        "tests/engine/models/test_embeddings.py"
        "::test_other_files_are_left_out_with_a_line_in_the_log",
        "engine/models/embeddings.py",
        'data = torch.load(path, map_location="cpu", weights_only=True)',
        'data = torch.load(path, map_location="cpu", weights_only=False)',
    ),
    Defence(
        "The embedded engine runs no code of an upscaler",
        "tests/engine/images/test_upscalers.py"
        "::test_a_file_that_is_no_model_is_an_error_with_its_name",
        "engine/images/upscaler_models.py",
        'found = torch.load(path, map_location="cpu", weights_only=True)',
        'found = torch.load(path, map_location="cpu", weights_only=False)',
    ),
    Defence(
        "A file's name at its host becomes one clean name, never a path",
        "tests/formats/test_names.py::test_any_text_becomes_a_stem_that_is_valid_everywhere",
        "worker/formats/names.py",
        'plain = _UNSAFE.sub("_", stem).encode',
        "plain = stem.encode",
    ),
    Defence(
        "A file whose hash is not the expected one is never used",
        "tests/models/store/test_fetcher.py::test_the_jobs_hash_must_be_right",
        "worker/models/download/download.py",
        "if sha256 in {None, fetched.sha256}:",
        "if True:",
    ),
]

HOST = [
    Defence(
        "URLs are https, except those of hosts that the operator trusts",
        "tests/http/test_client.py"
        "::test_a_url_that_is_not_https_is_refused_before_anything_is_sent",
        "worker/http/client.py",
        'elif parts.scheme == "https" and parts.host:',
        "elif parts.host:",
    ),
    Defence(
        "No connection to an address that is not public",
        "tests/http/test_client.py::test_a_name_with_a_private_address_is_refused",
        "worker/http/client.py",
        "            self._check(str(address[0]))\n",
        "            pass\n",
    ),
    Defence(
        "also if a name changes its address after the check (DNS rebinding)",
        "tests/http/test_client.py"
        "::test_a_name_that_changes_its_address_after_the_check_is_refused",
        "worker/http/client.py",
        "            self._check(str(connected.getpeername()[0]))\n",
        "            pass\n",
    ),
    Defence(
        "A private IPv4 address inside an IPv6 address is private",
        "tests/http/test_urls.py::test_a_private_address_inside_another_one_stays_private",
        "worker/http/urls.py",
        "if inner and not is_public(str(inner)):",
        "if False:",
    ),
    Defence(
        "Each redirect is checked like the first URL",
        "tests/http/test_client.py::test_each_hop_is_checked",
        "worker/http/client.py",
        "headers=headers, redirect=False, preload",
        "headers=headers, redirect=True, preload",
    ),
    Defence(
        "There are at most five redirects",
        "tests/http/test_client.py::test_redirects_are_counted",
        "worker/http/client.py",
        "for hops in range(self._limits.max_redirects + 1):",
        "for hops in range(99):",
    ),
    Defence(
        "A key goes to its own host only, not to the storage behind a redirect",
        "tests/http/test_client.py::test_the_token_goes_to_its_own_origin_and_not_to_the_storage",
        "worker/http/client.py",
        "if token := self._tokens.get(origin(url)):",
        "if token := next(iter(self._tokens.values()), None):",
    ),
    Defence(
        "A bucket that a job names is reached by the same client",
        "tests/delivery/test_job_bucket.py::test_a_name_that_leads_to_this_network_gets_no_request",
        "worker/delivery/bucket.py",
        "SafeRequests(http).serve(self._client)",
        "SafeRequests(http)",
    ),
    Defence(
        "Of its answers boto3 parses no XML",
        "tests/delivery/test_job_bucket.py"
        "::test_an_answer_of_any_kind_is_a_success_or_a_short_reason",
        "worker/delivery/s3_requests.py",
        'return f"<Error><Code>{code}</Code></Error>".encode() if code else b""',
        "return answer.body",
    ),
    Defence(
        "A webhook reaches neither the engine nor the network",
        "tests/gateway/test_webhooks.py"
        "::test_a_webhook_reaches_neither_the_engine_nor_this_server_nor_the_network",
        "gateway/local/webhooks.py",
        "            self._client(url).check(url)\n",
        "            pass\n",
    ),
    Defence(
        "An answer about a model has at most 8 MiB",
        "tests/http/test_client.py::test_a_document_is_read_up_to_its_limit",
        "worker/http/client.py",
        "while block := self.read(most - len(body)):",
        "while block := self.read(most):",
    ),
    Defence(
        "It is not unpacked, so that a small one stays small",
        "tests/http/test_client.py::test_an_answer_is_not_unpacked",
        "worker/http/client.py",
        "self._response.read(amount, decode_content=False)",
        "self._response.read(amount, decode_content=True)",
    ),
    Defence(
        "Its whole time is limited, however slowly its bytes come",
        "tests/http/test_client.py::test_an_answer_that_does_not_come_to_its_end_is_cut_in_time",
        "worker/http/client.py",
        "within(limits.document_seconds, stop),",
        "within(9999.0),",
    ),
    Defence(
        "The whole time for the pictures behind URLs is limited",
        "tests/images/test_fetch.py::test_a_slow_host_is_given_up_in_time_and_its_thread_ends",
        "worker/images/fetch.py",
        "            interrupt.cut()\n",
        "            pass\n",
    ),
    Defence(
        "An upload to a job's URL follows no redirect",
        "tests/delivery/test_put_url.py"
        "::test_only_temporary_failures_are_followed_by_another_attempt",
        "worker/http/client.py",
        "        with Reply(self._send(method, url, dict(headers), data), url) as reply:\n",
        "        with self.open(url, method=method, headers=headers) as reply:\n",
    ),
    Defence(
        "The whole time of an upload to a job's URL is limited",
        "tests/delivery/test_put_url.py::test_a_host_that_never_answers_is_given_up_in_time",
        "worker/delivery/put_url.py",
        "with within(limits.seconds, stop):",
        "with within(9999.0, stop):",
    ),
    Defence(
        "The uploads of a cancelled job end at once",
        "tests/test_handler.py::test_the_uploads_of_a_cancelled_job_end",
        "worker/tasks/finished_pictures.py",
        "            self.stop.set()\n",
        "            pass\n",
    ),
    Defence(
        "The whole time for its answer is limited",
        "tests/gateway/test_webhooks.py::test_a_webhook_whose_answer_never_ends_is_given_up",
        "gateway/local/webhooks.py",
        "with within(self._limits.seconds):",
        "with within(9999.0):",
    ),
    Defence(
        "A download that is stopped leaves no thread that waits for its host",
        "tests/models/download/test_download.py::test_a_stop_does_not_wait_for_the_host",
        "worker/models/download/download.py",
        "            interrupt.cut()\n",
        "            pass\n",
    ),
    Defence(
        "A picture behind a URL has at most 32 MiB, whatever its host announces",
        "tests/images/test_fetch.py::test_no_more_is_read_than_a_picture_may_have",
        "worker/images/fetch.py",
        "            check_file(len(data), self._limits)\n",
        "            pass\n",
    ),
    Defence(
        "A model has at most 32 GiB, also if its host announces no size",
        "tests/models/download/test_download.py"
        "::test_a_useless_or_too_large_file_is_refused_after_a_megabyte",
        "worker/models/download/download.py",
        "if part.position > self._limits.largest_file:",
        "if False:",
    ),
]

VOLUME = [
    Defence(
        "A FIFO, a socket or a device in place of a file is not read",
        "tests/test_files.py::test_nothing_else_is_opened",
        "worker/files.py",
        "if not stat.S_ISREG(os.fstat(descriptor).st_mode):",
        "if False:",
    ),
    Defence(
        "and does not block",
        "tests/models/store/test_references.py::test_a_fifo_in_place_of_an_answer_does_not_block",
        "worker/files.py",
        "os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC",
        "os.O_RDONLY | os.O_CLOEXEC",
    ),
    Defence(
        "Small files have a limit in bytes",
        "tests/test_files.py::test_a_large_file_is_not_read_where_a_small_one_is_expected",
        "worker/files.py",
        "    if len(content) > limit:",
        "    if False:",
    ),
    Defence(
        "A stored model that has changed is hashed again before it is used",
        "tests/models/store/test_blobs.py::test_a_damaged_blob_is_never_found_and_can_be_replaced",
        "worker/models/store/blobs.py",
        "is_whole = size == blob.about.size and file_sha256(blob.path) == blob.sha256",
        "is_whole = True",
    ),
    Defence(
        "Folders in one another are read to the sixteenth level",
        "tests/models/store/test_listing.py::test_deeply_nested_folders_end_at_the_sixteenth_level",
        "worker/models/store/listing.py",
        "_DEEPEST = 16",
        "_DEEPEST = 99",
    ),
    Defence(
        "A wildcard that links out of its folder is not read",
        "tests/models/test_wildcard_files.py::test_a_file_that_cannot_be_used_is_named",
        "worker/models/wildcard_files.py",
        "if not path.resolve().is_relative_to(folder.resolve()):",
        "if False:",
    ),
    Defence(
        "The operator's file is never replaced by a link",
        "tests/models/store/test_store.py"
        "::test_arranging_never_touches_what_the_operator_put_into_the_engines_folder",
        "worker/models/store/links.py",
        "if (not os.path.lexists(link) or is_ours(link)) and point(link, target):",
        "if point(link, target):",
    ),
    Defence(
        "RUN_DIR belongs to the worker's user",
        "tests/stories/test_start_sh.py::test_a_run_dir_of_another_user_starts_nothing",
        "start.sh",
        "&& [[ -O $RUN_DIR && -w $RUN_DIR ]] ||",
        "||",
    ),
    Defence(
        "and no other user reads the engine's URL there",
        "tests/config/test_shell.py::test_other_users_cannot_read_the_engines_url",
        "start.sh",
        "(umask 077 && printf '%s %s\\n'",
        "(printf '%s %s\\n'",
    ),
]

PAGE = [
    Defence(
        "The gateway answers only under private names, so no web site leads to it (DNS rebinding)",
        "tests/gateway/test_guard.py::test_a_request_that_a_user_did_not_send_starts_no_job",
        "gateway/http/head.py",
        "if not is_private_name(name) and name not in access.hosts:",
        "if False:",
    ),
    Defence(
        "It answers no page of another origin",
        "tests/gateway/test_guard.py::test_a_request_that_a_user_did_not_send_starts_no_job",
        "gateway/http/head.py",
        "if origin in access.origins or _is_own(origin, headers):",
        "if True:",
    ),
    Defence(
        "nor a link or a picture in one",
        "tests/gateway/test_guard.py::test_a_request_that_a_user_did_not_send_starts_no_job",
        "gateway/http/head.py",
        "if not (is_own or _opens_the_page(scope, headers)):",
        "if False:",
    ),
    Defence(
        "A request that two servers could read in two ways is refused",
        "tests/gateway/test_guard.py::test_a_request_that_a_user_did_not_send_starts_no_job",
        "gateway/http/head.py",
        'if counted["content-length"] and counted["transfer-encoding"]:',
        "if False:",
    ),
    Defence(
        "A body has a limit in bytes and in time",
        "tests/gateway/test_guard.py::test_a_body_is_cut_at_its_limit_and_after_its_time",
        "gateway/http/guard.py",
        "if total > self._access.body_limit:",
        "if False:",
    ),
    Defence(
        "With a login, nothing but `/ping` is answered without it",
        "tests/gateway/test_guard.py::test_with_a_login_only_the_right_one_starts_a_job",
        "gateway/http/guard.py",
        "            await self._check_login(scope)\n",
        "",
    ),
    Defence(
        "Wrong logins wait",
        "tests/gateway/test_guard.py::test_wrong_logins_wait_without_blocking_others",
        "gateway/http/login.py",
        "            await self._sleep(self._pause)\n",
        "            pass\n",
    ),
    Defence(
        "The embedded engine answers no page either",
        "tests/engine/api/test_server.py::test_a_web_page_cannot_use_the_engine",
        "engine/api/server.py",
        "    app.add_middleware(Guard, host=host)\n",
        "",
    ),
    Defence(
        "A1111 answers no page either",
        "tests/extension/test_guard.py::test_a1111_refuses_web_pages_once_its_app_was_prepared",
        "image/a1111_extension/a1111_worker/parts.py",
        '        app.add_middleware(guard.Guard, host=host or "localhost")\n',
        "        pass\n",
    ),
    Defence(
        "The page runs no script of another origin",
        "tests/gateway/test_page_routes.py"
        "::test_files_have_their_type_and_the_headers_of_a_safe_page",
        "gateway/page/routes.py",
        '    "Content-Security-Policy": _POLICY,\n',
        "",
    ),
]

LOG = [
    Defence(
        "Secrets of the environment are hidden in every line",
        "tests/test_log.py::test_a_secret_is_hidden_in_messages_arguments_and_tracebacks",
        "worker/log.py",
        'text = text.replace(secret, "***")',
        "pass",
    ),
    Defence(
        "and those of jobs",
        "tests/test_log.py::test_the_secrets_of_jobs_are_hidden_until_the_last_of_them_has_ended",
        "worker/log.py",
        "    _of_jobs.update(found)\n",
        "",
    ),
    Defence(
        "Many names of variables mean a secret",
        "tests/config/test_settings.py"
        "::test_a_variable_that_is_named_like_a_secret_is_never_logged",
        "worker/config/credentials.py",
        "|(?:{'|'.join(SECRET_ENDS)})\\Z",
        "",
    ),
    Defence(
        "Text from a job cannot forge a line",
        "tests/test_log.py::test_text_from_a_job_cannot_forge_a_line",
        "worker/log.py",
        'return text if own_lines else text.replace("\\n", "\\n    ")',
        "return text",
    ),
    Defence(
        "also not with control characters",
        "tests/test_log.py::test_text_from_a_job_cannot_forge_a_line",
        "worker/log.py",
        "    text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)\n",
        "",
    ),
    Defence(
        "Text from a job cannot forge a line of the engine's log",
        "tests/test_log.py::test_text_from_a_job_cannot_forge_a_line_of_the_embedded_engine",
        "engine/__main__.py",
        '        text = text.replace("\\n", "\\n    ")\n',
        "",
    ),
    Defence(
        "A line of the code writes at most 200 messages a minute",
        "tests/test_log.py::test_a_line_of_the_code_that_writes_too_much_is_limited_and_counted",
        "worker/log.py",
        "return count < MOST_IN_A_MINUTE",
        "return True",
    ),
    Defence(
        "A URL is shown without its query, which is a secret if it is signed",
        "tests/http/test_urls.py::test_a_shown_url_contains_no_secret",
        "worker/http/urls.py",
        """return f"{origin(url)}{parsed(url).path or ''}\"""",
        "return url",
    ),
    Defence(
        "No library logs the URL of a request",
        "tests/http/test_client.py::test_no_log_and_no_error_holds_a_secret",
        "worker/http/client.py",
        'logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)\n',
        "",
    ),
    Defence(
        "A result has the URL of an upload without its query",
        "tests/delivery/test_put_url.py"
        "::test_the_bytes_arrive_with_their_type_and_the_query_stays_secret",
        "worker/delivery/put_url.py",
        "                return target\n",
        "                return url\n",
    ),
    Defence(
        "A signed URL is never written into the store",
        "tests/models/store/test_references.py::test_a_secret_url_is_never_written",
        "worker/models/store/references.py",
        "remote=None if has_secret else remote",
        "remote=remote",
    ),
    Defence(
        "The engine gets only the variables that engines read",
        "tests/config/test_settings.py"
        "::test_the_engine_gets_what_engines_read_and_what_the_operator_names",
        "worker/config/credentials.py",
        "(not _FOR_ENGINE.fullmatch(name) or _is_secret(name, value))",
        "_is_secret(name, value)",
    ),
    Defence(
        "start.sh removes the others from its environment",
        "tests/stories/test_start_sh.py::test_secrets_reach_the_handler_and_tcmalloc_the_engine",
        "start.sh",
        '    unset+=(-u "$name")',
        "    :",
    ),
    Defence(
        "No error of the engine's client has the password in `WEBUI_URL`",
        "tests/webui/test_client.py"
        "::test_without_an_engine_the_connection_is_lost_and_the_password_not_shown",
        "worker/webui/client.py",
        'urlsplit(url).netloc.rpartition("@")[2]',
        "urlsplit(url).netloc",
    ),
]

# Kind of attacker, as in the names of the generated parts of docs/security.md -> the defences.
DEFENCES = {
    "job": JOB,
    "model": MODEL,
    "host": HOST,
    "neighbour": VOLUME,
    "page": PAGE,
    "log": LOG,
}
