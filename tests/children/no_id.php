<?php
// Replies without an id.
while (fgets(STDIN) !== false) {
    fwrite(STDOUT, json_encode(["status" => "ok", "result" => getmypid()]) . "\n");
}
