<?php
// Dies once in the middle of its reply.
while (($line = fgets(STDIN)) !== false) {
    $request = json_decode($line, true);
    $mark = $request["payload"]["args"][0];
    $reply = ["id" => $request["id"], "status" => "ok", "result" => getmypid()];
    if (!file_exists($mark)) {
        touch($mark);
        fwrite(STDERR, "out of ink\n");
        fwrite(STDOUT, substr(json_encode($reply), 0, 30));
        exit(3);
    }
    fwrite(STDOUT, json_encode($reply) . "\n");
}
